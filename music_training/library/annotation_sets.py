"""Open annotation sets as our annotations: Harmonix, Raveform, EDM-98, EDM-CUE and SALAMI, and pairing with own audio.

Each set has a label map into intro, buildup, drop, breakdown and outro. What has no honest counterpart there is left
unlabelled and counted: a chorus is no drop, a verse is nothing at all in this sense.

| set | intro | buildup | drop | breakdown | outro | unlabelled |
|---|---|---|---|---|---|---|
| Raveform | intro | buildup | drop | breakdown | outro, altoutro | cooldown |
| EDM-98 | intro | buildup | drop | breakdown | outro | silence |
| Harmonix | intro | build | - | breakdown | outro | chorus, verse, break, bridge and the rest |
| SALAMI | Intro | Build | - | Breakdown | Outro | Chorus, Verse, Silence, Fade-out and the rest |
| EDM-CUE | - | - | - | - | - | every cue point: boundaries alone |
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UserError
from . import annotations
from .annotations import Annotation, Metadata, from_marks

RAVEFORM = {"altoutro": "outro"}
HARMONIX = {"build": "buildup", **{f"intro{n}": "intro" for n in range(2, 10)}, **{f"outro{n}": "outro" for n in range(2, 10)}}
SALAMI = {"Intro": "intro", "Outro": "outro", "Build": "buildup", "Breakdown": "breakdown"}


@dataclass(frozen=True)
class Converted:
    """A converted set: annotations by id, and how often each original label became which of ours (None: unlabelled)."""

    name: str
    tracks: dict[str, Annotation]
    labels: Counter

    def table(self) -> list[tuple[str, str, int]]:
        """(original label, ours or "unlabelled", count), the most frequent first."""
        return [(original, ours or "unlabelled", count) for (original, ours), count in self.labels.most_common()]

    def mapped(self) -> tuple[int, int]:
        """How many sections have a label and how many have not."""
        mapped = sum(count for (_, ours), count in self.labels.items() if ours)
        return mapped, self.labels.total() - mapped


def _converted(name: str, tracks: Iterable[tuple[str, Annotation]]) -> Converted:
    tracks = dict(sorted(tracks))
    labels = Counter((section.original or section.label, section.label) for track in tracks.values() for section in track.structure)
    return Converted(name, tracks, labels)


def harmonix(folder: Path) -> Converted:
    """The Harmonix set's folder: ``segments/*.txt``, ``beats_and_downbeats/*.txt``, ``metadata.csv``; its EDM tracks."""
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as stream:
        rows = {row["File"]: row for row in csv.DictReader(stream)}
    tracks = []
    for name, row in rows.items():
        path = folder / "segments" / f"{name}.txt"
        if not path.exists() or not _is_dance(row):
            continue
        beats = [(float(time), int(place)) for time, place, *_ in _lines(folder / "beats_and_downbeats" / f"{name}.txt")]
        about = Metadata(tier=1, source="Harmonix", title=row["Title"], artist=row["Artist"])
        given = {"file": name, "duration": float(row["Duration"] or 0), "bpm": float(row["BPM"] or 0) or None, "beats": beats}
        tracks.append((name, from_marks(_marks(path), HARMONIX, metadata=about, **given)))
    return _converted("harmonix", tracks)


def _is_dance(row: Mapping[str, str]) -> bool:
    """Whether a row is of electronic music; titles with commas have shifted some rows, so every cell is looked at."""
    return any(value and "Electronic" in str(value) for value in row.values())


def salami(folder: Path, annotator: int = 1) -> Converted:
    """SALAMI's folder: ``annotations/<id>/parsed/textfile<annotator>_functions.txt`` and ``metadata*.csv``."""
    table = next(iter(sorted(folder.glob("metadata*.csv"))), None)
    if table is None:
        raise UserError(f"{folder}: no metadata.csv of SALAMI here")
    with open(table, encoding="utf-8", newline="") as stream:
        rows = {row["SONG_ID"]: row for row in csv.DictReader(stream)}
    tracks = []
    for path in sorted(folder.glob(f"annotations/*/parsed/textfile{annotator}_functions.txt")):
        number = path.parts[-3]
        row = rows.get(number, {})
        about = Metadata(
            tier=1,
            source="SALAMI",
            title=(row.get("SONG_TITLE") or "").replace("_", " "),
            artist=(row.get("ARTIST") or "").replace("_", " "),
        )
        tracks.append(
            (number, from_marks(_marks(path), SALAMI, file=number, duration=float(row.get("SONG_DURATION") or 0), metadata=about))
        )
    return _converted("salami", tracks)


def raveform(path: Path) -> Converted:
    """Raveform's ``segments.json``: tracks with sections [{name, start, end}], bpm, genre, fold."""
    content = _json(path)
    pairs = content.items() if isinstance(content, dict) else ((str(row.get("id") or row.get("key")), row) for row in content)
    tracks = []
    for name, row in pairs:
        marks = [(section["start"], section["name"]) for section in row["sections"]]
        marks.append((row["sections"][-1]["end"], "end"))
        tracks.append((name, from_marks(marks, RAVEFORM, file=name, bpm=row.get("bpm"), metadata=Metadata(tier=1, source="Raveform"))))
    return _converted("raveform", tracks)


def edm98(path: Path) -> Converted:
    """EDM-98's JSONL (a file, or a folder of them): {id, labels: [[time, label], ..., [time, "end"]], file_path}."""
    paths = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    tracks = []
    for file in paths:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                row = _row(file, number, line)
                marks = [(float(time), str(label)) for time, label in row["labels"]]
                name = Path(str(row.get("file_path") or row["id"])).stem
                tracks.append((str(row["id"]), from_marks(marks, {}, file=name, metadata=Metadata(tier=1, source="EDM-98"))))
    return _converted("edm98", tracks)


def edm_cue(path: Path) -> Converted:
    """EDM-CUE's rows (JSON or JSONL): ``cue_pts`` are boundaries without labels, ``beat_grid`` numbers the bars."""
    text = path.read_text(encoding="utf-8")
    rows = [_row(path, n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()] if path.suffix == ".jsonl" else _json(path)
    rows = [{"id": name, **row} for name, row in rows.items()] if isinstance(rows, dict) else rows
    tracks = []
    for number, row in enumerate(rows):
        name = str(row.get("id") or row.get("track_id") or row.get("title") or number)
        grid = [(float(beat[0]), int(beat[1])) if isinstance(beat, list) else (float(beat), 0) for beat in row.get("beat_grid") or []]
        if grid and not any(place for _, place in grid):
            grid = [(time, place % 4 + 1) for place, (time, _) in enumerate(grid)]
        marks = [(float(cue[0] if isinstance(cue, list) else cue), "cue") for cue in row.get("cue_pts") or []]
        if marks:
            duration = float(row.get("duration") or 0) or (grid[-1][0] if grid else 0.0)
            about = Metadata(tier=2, source="EDM-CUE", title=str(row.get("title") or ""), artist=str(row.get("artist") or ""))
            tracks.append((name, from_marks(marks, {}, file=name, duration=duration, beats=grid, metadata=about)))
    return _converted("edm_cue", tracks)


READERS: dict[str, Callable[[Path], Converted]] = {
    "harmonix": harmonix,
    "raveform": raveform,
    "edm98": edm98,
    "edm_cue": edm_cue,
    "salami": salami,
}


def write(converted: Converted, folder: Path) -> list[Path]:
    """Write ``yaml/<id>.yaml`` and ``jams/<id>.jams`` of every track below ``folder``; returns the YAML paths."""
    paths = []
    for name, track in converted.tracks.items():
        safe = re.sub(r"[^\w.-]+", "_", name).strip(".") or "track"
        paths.append(annotations.write(track, folder / "yaml" / f"{safe}.yaml"))
        annotations.write_jams(track, folder / "jams" / f"{safe}.jams")
    return paths


def _marks(path: Path) -> list[tuple[float, str]]:
    return [(float(time), " ".join(label)) for time, *label in _lines(path)]


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()] if path.exists() else []


def _json(path: Path) -> Any:
    content = files.read_json(path)
    if not content:
        raise UserError(f"{path}: not a JSON file with tracks; fetch the set again")
    return content


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number}: not JSON ({error.msg})") from None


# Pairing with a person's own audio


@dataclass(frozen=True)
class Pairs:
    """Annotations with their audio (id to path), and why the others have none (id to reason)."""

    found: dict[str, Path]
    missing: dict[str, str]


def pair(
    converted: Converted, audio: Path, seconds: float = 3.0, suffixes: Iterable[str] = (".mp3", ".flac", ".wav", ".ogg", ".m4a")
) -> Pairs:
    """Find the audio of annotations below a folder: by file name, else by the tags artist and title.

    A file whose duration differs by more than ``seconds`` is another version and not taken; one file goes to one track.
    """
    paths = [path for path in sorted(audio.rglob("*")) if path.suffix.lower() in set(suffixes)]
    by_name: dict[str, list[Path]] = {}
    by_tags: dict[tuple[str, str], list[Path]] = {}
    lengths: dict[Path, float] = {}
    for path in paths:
        artist, title, lengths[path] = _tags(path)
        by_name.setdefault(_plain(path.stem), []).append(path)
        if artist and title:
            by_tags.setdefault((_plain(artist), _plain(title)), []).append(path)
    found, missing, taken = {}, {}, set()
    for name, track in converted.tracks.items():
        about = track.metadata
        keys = [name, track.audio.file, Path(track.audio.file).stem, f"{about.artist} - {about.title}" if about.title else ""]
        candidates = [path for key in keys if key for path in by_name.get(_plain(key), [])]
        candidates = candidates or by_tags.get((_plain(about.artist), _plain(about.title)), []) if about.title else candidates
        fitting = [path for path in dict.fromkeys(candidates) if not lengths[path] or abs(lengths[path] - track.audio.duration) <= seconds]
        if not candidates:
            missing[name] = "no file of that name or with those tags"
        elif not fitting:
            near = min(candidates, key=lambda path: abs(lengths[path] - track.audio.duration))
            missing[name] = f"{near.name} lasts {lengths[near]:.1f} s, the annotation {track.audio.duration:.1f} s: another version"
        elif not set(fitting) - taken:
            missing[name] = f"{fitting[0].name} belongs to another track already"
        else:
            found[name] = min((path for path in fitting if path not in taken), key=lambda path: abs(lengths[path] - track.audio.duration))
            taken.add(found[name])
    return Pairs(found, missing)


def _plain(text: str) -> str:
    """Lower case, letters and digits alone: "01 - Daft Punk_Around.The World" and "daft punk around the world" come near."""
    return re.sub(r"[\W_]+", "", re.sub(r"^\d{1,3}[ ._-]+(?=\D)", "", text.lower()))


def _tags(path: Path) -> tuple[str, str, float]:
    """Artist, title and duration (s) as the file says; empty and 0 where it does not."""
    import mutagen

    try:
        file = mutagen.File(path, easy=True)
    except mutagen.MutagenError:
        return "", "", 0.0
    if file is None:
        return "", "", 0.0
    tags = file.tags or {}
    first = {name: str((tags.get(name) or [""])[0]) for name in ("artist", "title")} if hasattr(tags, "get") else {}
    return first.get("artist", ""), first.get("title", ""), float(getattr(file.info, "length", 0.0) or 0.0)
