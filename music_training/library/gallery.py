"""Looks at a catalogue: tables, a picture, players."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .. import files
from . import catalogue


def table(dataset: str):
    """A pandas table of the genres: tracks, artists, hours, licences; with a row for all."""
    import pandas

    tracks = catalogue.read(catalogue.path_of(dataset))
    rows = pandas.DataFrame(
        {
            "genre": track.genre or "(none)",
            "artist": track.artist_id,
            "hours": track.duration / 3600,
            "licence": track.licence,
            "source": track.source,
        }
        for track in tracks
    )
    columns = {
        "tracks": ("artist", "size"),
        "artists": ("artist", "nunique"),
        "hours": ("hours", "sum"),
        "licences": ("licence", "nunique"),
    }
    found = rows.groupby("genre").agg(**columns).sort_values(["tracks", "artists"], ascending=False)
    found.loc["all"] = [len(rows), rows["artist"].nunique(), rows["hours"].sum(), rows["licence"].nunique()]
    return found.astype({name: int for name in ("tracks", "artists", "licences")}).round(2)


def labels(dataset: str):
    """A pandas table of what became of the labels of the annotation sets, the most frequent first."""
    import pandas

    return pandas.read_csv(catalogue.path_of(dataset).parent / "annotations" / "labels.csv").sort_values(
        ["set", "count"], ascending=[True, False]
    )


def draw(dataset: str):
    """Tracks by genre and by source, and their durations, as a matplotlib figure."""
    import matplotlib.pyplot as plt

    tracks = catalogue.read(catalogue.path_of(dataset))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3), layout="constrained")
    for axes, title, values in (
        (left, "Genres", Counter(track.genre or "(none)" for track in tracks)),
        (middle, "Sources", Counter(track.source for track in tracks)),
    ):
        names, counts = zip(*values.most_common(12)[::-1], strict=True)
        axes.barh(names, counts)
        axes.set(title=title, xlabel="tracks")
    right.hist([track.duration for track in tracks if track.duration], bins=30)
    right.set(title="Durations", xlabel="s", ylabel="tracks")
    figure.suptitle(f"{dataset}: {len(tracks)} tracks, {sum(track.duration for track in tracks) / 3600:.1f} h")
    plt.close(figure)  # the cell shows it once, as its value
    return figure


def players(dataset: str, count: int = 3, seconds: float = 30.0):
    """``count`` tracks spread over the catalogue to listen to, ``seconds`` of each, with what its licence asks to be said."""
    from html import escape

    from IPython.display import HTML, Audio

    from . import audio

    tracks = [track for track in catalogue.read(catalogue.path_of(dataset)) if track.path and _plays(files.absolute(track.path))]
    chosen = [tracks[i * len(tracks) // count] for i in range(min(count, len(tracks)))]
    cells = []
    for track in chosen:
        samples, rate = audio.read(files.absolute(track.path), 32000)
        player = Audio(samples[: int(seconds * rate)], rate=rate)._repr_html_()
        cells.append(f"<p>{escape(track.attribution)}</p>{player}")
    return HTML("".join(cells) or "<p>no audio in this data set</p>")


def _plays(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def rolls(dataset: str, count: int = 3):
    """The notes of ``count`` MIDI files of a catalogue (time in s against pitch), as a matplotlib figure."""
    import matplotlib.pyplot as plt
    import symusic

    tracks = [track for track in catalogue.read(catalogue.path_of(dataset)) if track.midi]
    chosen = [tracks[i * len(tracks) // count] for i in range(min(count, len(tracks)))]
    figure, places = plt.subplots(1, max(1, len(chosen)), figsize=(13, 3), layout="constrained", squeeze=False)
    for axes, track in zip(places[0], chosen, strict=False):
        notes = [note for part in symusic.Score(files.absolute(track.midi), ttype="second").tracks for note in part.notes]
        axes.hlines([note.pitch for note in notes], [note.start for note in notes], [note.start + note.duration for note in notes], lw=2)
        axes.set(title=track.title[-40:], xlabel="s", ylabel="MIDI pitch")
    figure.suptitle(f"{dataset}: {len(tracks)} MIDI files")
    plt.close(figure)
    return figure
