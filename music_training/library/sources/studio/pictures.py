"""What a notebook shows of the studio library: a table, a track's form, its players, who speaks in a dialogue."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from .... import config, files
from ....errors import UserError
from ... import catalogue
from .song import LABELS

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

COLOURS = dict(zip(LABELS, ("#9ecae1", "#fdae6b", "#e6550d", "#74c476", "#bcbddc"), strict=True))
COLUMNS = ("id", "artist", "title", "genre", "bpm", "key", "duration", "valence", "arousal", "intensity")


def table(dataset: str) -> pandas.DataFrame:
    """The tracks of a data set, a row each."""
    import pandas

    rows = [{name: getattr(track, name) for name in COLUMNS} for track in catalogue.read(catalogue.path_of(dataset))]
    return pandas.DataFrame(rows).set_index("id").round({"duration": 1})


def track(dataset: str, track_id: str = "") -> catalogue.Track:
    """A track of a data set: the one asked for, else the most intense one. UserError where there is none of that id."""
    tracks = catalogue.read(catalogue.path_of(dataset))
    if not track_id:
        return max(tracks, key=lambda one: one.intensity or 0.0)
    for one in tracks:
        if one.id == track_id:
            return one
    raise UserError(f"track {track_id!r}: not in {catalogue.path_of(dataset)}{config.suggest(track_id, [one.id for one in tracks])}")


def draw_form(shown: catalogue.Track) -> Figure:
    """The waveform of a track under the colours of its sections, with downbeats, and two bars with every beat."""
    from matplotlib import pyplot

    annotation = config.read_yaml(files.absolute(shown.annotation))
    sections, length = annotation["structure"], annotation["audio"]["duration"]
    beats = np.loadtxt(files.absolute(shown.annotation).parent / "beats.tsv", ndmin=2)
    samples, rate = soundfile.read(files.absolute(shown.path), dtype="int16")
    figure, (whole, detail) = pyplot.subplots(2, 1, figsize=(12, 4.5), layout="constrained")
    _draw_wave(whole, samples[:, 0], rate, 0.0, length)
    for section, end in zip(sections, [*(later["time"] for later in sections[1:]), length], strict=True):
        whole.axvspan(section["time"], end, color=COLOURS[section["label"]], alpha=0.5, lw=0, zorder=0)
        whole.text(section["time"], 1.04, f" {section['label']}", fontsize=9)
    whole.vlines(beats[beats[:, 1] == 1, 0], -1, -0.9, color="black", lw=0.6)
    whole.set(title=f"{shown.title} by {shown.artist} (synthetic {shown.genre}, {shown.bpm:g} bpm, {shown.key})\n", ylim=(-1, 1.2))
    start = next((section["time"] for section in sections if section["label"] == "drop"), sections[0]["time"])
    end = min(length, start + 8 * 60 / annotation["audio"]["bpm"])
    _draw_wave(detail, samples[:, 0], rate, start, end)
    inside = beats[(beats[:, 0] >= start - 1e-3) & (beats[:, 0] < end)]
    for time, position in inside:
        detail.axvline(time, color="crimson" if position == 1 else "grey", lw=1.5 if position == 1 else 0.8)
    detail.set(title="the first two bars of the drop, with beats (downbeats in red)", xlabel="seconds", ylim=(-1, 1))
    pyplot.close(figure)
    return figure


def players(shown: catalogue.Track, seconds: float = 12.0) -> Any:
    """Players for the mixture and every stem (mono mp3, embedded): the end of the first build-up and the drop."""
    sections = config.read_yaml(files.absolute(shown.annotation))["structure"]
    drop = next((section["time"] for section in sections if section["label"] == "drop"), 0.0)
    start = max(0.0, drop - seconds / 3)
    sounds = {"mixture": shown.path, **{stem: path for stem, path in shown.stems.items() if stem != "drums"}}
    return _audio_table((name, files.absolute(path), start, seconds) for name, path in sounds.items())


def dialogues(dataset: str) -> list[dict[str, Any]]:
    """The dialogues of a data set, empty where it has none."""
    path = catalogue.path_of(dataset).with_name("dialogues.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def draw_dialogue(dataset: str, index: int = 0) -> Figure:
    """Who speaks when in a dialogue, over its waveform."""
    from matplotlib import pyplot

    talks = dialogues(dataset)
    figure, axes = pyplot.subplots(figsize=(12, 2.5), layout="constrained")
    pyplot.close(figure)
    if not talks:
        axes.set(title="this data set has no dialogues")
        return figure
    talk = talks[index]
    samples, rate = soundfile.read(files.absolute(talk["path"]), dtype="int16")
    _draw_wave(axes, samples, rate, 0.0, talk["duration"])
    for line in files.absolute(talk["rttm"]).read_text(encoding="utf-8").splitlines():
        fields = line.split()
        lane = talk["speakers"].index(fields[7])
        axes.broken_barh([(float(fields[3]), float(fields[4]))], (1.1 + 0.3 * lane, 0.25), color=f"C{lane}", alpha=0.8)
    axes.set(
        title=f"{talk['id']} (synthetic): {', '.join(talk['speakers'])}", xlabel="seconds", ylim=(-1, 1.1 + 0.3 * len(talk["speakers"]))
    )
    return figure


def dialogue_player(dataset: str, index: int = 0, seconds: float = 15.0) -> Any:
    """A player for the beginning of a dialogue."""
    talks = dialogues(dataset)[index : index + 1]
    return _audio_table((talk["id"], files.absolute(talk["path"]), 0.0, seconds) for talk in talks)


def _draw_wave(axes, samples: np.ndarray, rate: int, start: float, end: float) -> None:
    """The envelope of a stretch of 16-bit samples: the lowest and highest value of some 1,500 columns."""
    first, last = int(start * rate), int(end * rate)
    width = max(1, (last - first) // 1500)
    columns = samples[first : first + (last - first) // width * width].reshape(-1, width) / 32768
    times = start + (np.arange(len(columns)) + 0.5) * width / rate
    axes.fill_between(times, columns.min(axis=1), columns.max(axis=1), color="#1f3b5c", lw=0)
    axes.set_xlim(start, end)


def _audio_table(sounds: Iterable[tuple[str, Any, float, float]]) -> Any:
    from IPython.display import HTML

    rows = []
    for name, path, start, seconds in sounds:
        rate = soundfile.info(path).samplerate
        samples, _ = soundfile.read(path, int(seconds * rate), int(start * rate), dtype="float32", always_2d=True)
        stream = io.BytesIO()
        soundfile.write(stream, samples.mean(axis=1), rate, format="MP3")
        source = f"data:audio/mpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
        rows.append(f'<tr><td>{html.escape(name)}</td><td><audio controls preload="none" src="{source}"></audio></td></tr>')
    return HTML(f"<table>{''.join(rows)}</table>")
