"""Structure annotations: one YAML file a track, read with every fault at once and its line, and the same as JAMS.

::

    metadata: {tier: 1, confidence: 0.95}
    audio: {file: track.flac, duration: 240.0, bpm: 128.0, downbeat: 0.0, time_signature: [4, 4]}
    structure:
      - {bar: 1, label: intro, time: 0.0, confidence: 1.0}
      - {bar: 17, label: null, time: 30.0, original: chorus}

A section lasts until the next begins, the last one until the end. Times are in seconds. ``label: null`` is a section
whose own label (``original``) has no counterpart among the five: its boundary counts, its label does not.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from .. import config, files
from ..config import ConfigError, Settings

LABELS = ("intro", "buildup", "drop", "breakdown", "outro")
SLACK = 0.5  # seconds that a section may begin after the stated end: durations are rounded
JAMS_VERSION = "0.3.4"


class Metadata(Settings):
    """How far an annotation can be trusted: ``tier`` 1 is checked by a person, ``source`` the set that it comes from.

    ``synthetic`` marks the annotation of composed audio.
    """

    tier: int = Field(1, ge=1, le=5)
    confidence: float = Field(1.0, ge=0, le=1)
    source: str = ""
    title: str = ""
    artist: str = ""
    synthetic: bool = False


class Audio(Settings):
    """The recording: ``downbeat`` is the time of the first beat of bar 1 (s)."""

    file: str
    duration: float = Field(gt=0, allow_inf_nan=False)
    bpm: float | None = Field(None, gt=0, allow_inf_nan=False)
    downbeat: float = Field(0.0, ge=0, allow_inf_nan=False)
    time_signature: tuple[int, int] = (4, 4)


class Section(Settings):
    """Where a section begins, and its label; ``original`` is the label of the set it was converted from."""

    time: float = Field(ge=0, allow_inf_nan=False)
    label: Literal["intro", "buildup", "drop", "breakdown", "outro"] | None = None
    bar: int | None = Field(None, ge=1)
    confidence: float = Field(1.0, ge=0, le=1)
    original: str = ""


class Annotation(Settings):
    """The structure of one track."""

    metadata: Metadata = Metadata()
    audio: Audio
    structure: tuple[Section, ...] = Field(min_length=1)

    def spans(self) -> list[tuple[float, float, str | None]]:
        """The sections as (start, end, label), in seconds."""
        starts = [section.time for section in self.structure]
        ends = [*starts[1:], max(self.audio.duration, starts[-1])]
        return [(start, end, section.label) for start, end, section in zip(starts, ends, self.structure, strict=True)]


def read(path: Path | str) -> Annotation:
    """Read one annotation; ConfigError has a line ``file:line: key: fault`` for each fault."""
    annotation, errors = _read(Path(path))
    if errors:
        raise ConfigError(errors)
    return annotation


def read_folder(folder: Path | str) -> dict[Path, Annotation]:
    """Read every ``*.yaml`` below a folder; ConfigError holds the faults of all files."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".yaml", ".yml") and not path.name.startswith("."))
    if not paths:
        raise ConfigError([f"{folder}: no annotation (*.yaml) in this folder"])
    found, errors = {}, []
    for path in paths:
        annotation, faults = _read(path)
        errors += faults
        if annotation:
            found[path] = annotation
    if errors:
        raise ConfigError(errors)
    return found


def _read(path: Path) -> tuple[Annotation | None, list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
        content = config.parse_yaml(text, str(path))
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        return None, [f"{path}: no such file"]
    except UnicodeDecodeError:
        return None, [f"{path}: not a text in UTF-8"]
    except ConfigError as error:
        return None, error.errors
    if not isinstance(content, dict):
        return None, [f"{path}:1: expected the keys metadata, audio and structure"]
    try:
        annotation, errors = Annotation.model_validate(content), []
    except ValidationError as error:
        annotation, errors = None, [_explain(path, node, fault) for fault in error.errors()]
    errors += [f"{path}:{_line(node, place)}: {'.'.join(map(str, place))}: {message}" for place, message in _doubts(content)]
    return (None if errors else annotation), errors


def _explain(path: Path, node: yaml.Node, fault: dict[str, Any]) -> str:
    place = list(fault["loc"])
    where, key = f"{path}:{_line(node, place)}", ".".join(map(str, place))
    if fault["type"] == "extra_forbidden":
        known = {"structure": Section, "audio": Audio, "metadata": Metadata}.get(str(place[0])) if len(place) > 1 else Annotation
        return f"{where}: {key}: unknown key{config.suggest(str(place[-1]), (known or Annotation).model_fields)}"
    if fault["type"] == "missing":
        return f"{where}: {key}: missing"
    if fault["type"] == "literal_error":
        return f"{where}: {key}: {fault['input']!r} is no label{config.suggest(str(fault['input']), LABELS)}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message[:1].lower()}{message[1:]} (got {fault['input']!r})"


def _line(node: yaml.Node, place: Iterable[str | int]) -> int:
    """The line of a key in the YAML; of what would hold it, where it is missing."""
    line = node.start_mark.line + 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _doubts(content: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """What no single field shows: order of times and bars, sections after the end."""
    audio = content.get("audio") if isinstance(content.get("audio"), dict) else {}
    sections = content.get("structure") if isinstance(content.get("structure"), list) else []
    duration = _number(audio.get("duration"))
    found: list[tuple[tuple[str | int, ...], str]] = []
    for key, what in (("time", "seconds"), ("bar", "bars")):
        before = None
        for place, section in enumerate(sections):
            value = _number(section.get(key)) if isinstance(section, dict) else None
            if value is None:
                continue
            if before is not None and value <= before:
                found.append(
                    (("structure", place, key), f"{value:g} does not come after {before:g}; sections stand in the order of their {what}")
                )
            if key == "time" and duration and value > duration + SLACK:
                found.append((("structure", place, key), f"{value:g} lies after the end of the track ({duration:g} s)"))
            before = value
    return found


def _number(value: Any) -> float | None:
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if right else None


def write(annotation: Annotation, path: Path | str) -> Path:
    """Write an annotation as YAML (atomically); what is at its default is left out."""
    content = annotation.model_dump(mode="json", exclude_defaults=True)
    content["structure"] = [
        {"bar": section.bar, "label": section.label, "time": section.time, "confidence": section.confidence}
        | ({"original": section.original} if section.original else {})
        for section in annotation.structure
    ]
    for section in content["structure"]:
        if section["bar"] is None:
            del section["bar"]
    return files.write_text(path, config.dump({"metadata": content.pop("metadata", {}), **content}))


# JAMS


def to_jams(annotation: Annotation) -> dict[str, Any]:
    """An annotation as a JAMS document: ``segment_open`` (our label, else the original one) and ``tempo``."""
    spans = zip(annotation.spans(), annotation.structure, strict=True)
    segments = [
        _observation(start, max(0.0, end - start), label or section.original or "unlabelled", section.confidence)
        for (start, end, label), section in spans
    ]
    found = [_jams_annotation("segment_open", segments, annotation)]
    if annotation.audio.bpm:
        whole = _observation(0.0, annotation.audio.duration, annotation.audio.bpm, annotation.metadata.confidence)
        found.append(_jams_annotation("tempo", [whole], annotation))
    about = annotation.metadata
    metadata = {"title": about.title, "artist": about.artist, "release": "", "duration": annotation.audio.duration, "identifiers": {}}
    sandbox = {"file": annotation.audio.file, "downbeat": annotation.audio.downbeat, "tier": about.tier}
    return {"annotations": found, "file_metadata": {**metadata, "jams_version": JAMS_VERSION}, "sandbox": sandbox}


def write_jams(annotation: Annotation, path: Path | str) -> Path:
    """Write an annotation as JAMS (atomically)."""
    return files.write_json(path, to_jams(annotation))


def read_jams(path: Path | str, labels: dict[str, str] | None = None) -> Annotation:
    """Read the sections, beats and tempo of a JAMS file; ``labels`` maps its labels to ours (ours pass as they are)."""
    path = Path(path)
    content = files.read_json(path)
    if not isinstance(content, dict) or "annotations" not in content:
        raise ConfigError([f"{path}: not a JAMS file"])
    rows: dict[str, list[dict[str, Any]]] = {}
    for item in content["annotations"]:
        data = item["data"]
        if isinstance(data, dict):  # the dense form: a list for each column
            data = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
        rows.setdefault(item["namespace"], data)
    segments = next((rows[name] for name in ("segment_open", "segment_salami_function", "multi_segment") if name in rows), None)
    if not segments:
        raise ConfigError([f"{path}: no segments (segment_open or segment_salami_function) in this JAMS file"])
    about, sandbox = content.get("file_metadata") or {}, content.get("sandbox") or {}
    marks = [(row["time"], row["value"]["label"] if isinstance(row["value"], dict) else str(row["value"])) for row in segments]
    marks.append((segments[-1]["time"] + segments[-1]["duration"], "end"))
    return from_marks(
        marks,
        labels or {},
        file=str(sandbox.get("file") or path.stem),
        duration=about.get("duration") or 0.0,
        bpm=rows["tempo"][0]["value"] if rows.get("tempo") else None,
        beats=[(row["time"], int(row["value"] or 0)) for row in rows.get("beat", [])],
        downbeat=float(sandbox.get("downbeat") or 0.0),
        metadata=Metadata(title=about.get("title") or "", artist=about.get("artist") or ""),
    )


def _observation(time: float, duration: float, value: Any, confidence: float) -> dict[str, Any]:
    return {"time": time, "duration": round(duration, 6), "value": value, "confidence": confidence}


def _jams_annotation(namespace: str, data: list[dict[str, Any]], annotation: Annotation) -> dict[str, Any]:
    empty = ("version", "annotation_tools", "annotation_rules", "validation", "data_source")
    about = {"curator": {"name": "", "email": ""}, "annotator": {}, "corpus": annotation.metadata.source, **dict.fromkeys(empty, "")}
    span = {"time": 0.0, "duration": annotation.audio.duration}
    return {"namespace": namespace, "data": data, "annotation_metadata": about, "sandbox": {}, **span}


# From marks


def from_marks(
    marks: Iterable[tuple[float, str]],
    labels: dict[str, str],
    *,
    file: str,
    duration: float = 0.0,
    bpm: float | None = None,
    beats: Sequence[tuple[float, int]] = (),
    downbeat: float | None = None,
    metadata: Metadata | None = None,
) -> Annotation:
    """Build an annotation from (time, label) marks of a set whose labels ``labels`` maps to ours.

    The mark ``end`` is the end of the track; without it ``duration`` is. ``beats`` are (time, position in the bar):
    they give the first downbeat and number the bars; without them a constant ``bpm`` does.
    """
    marks = sorted({round(time, 6): label for time, label in marks}.items())
    end = next((time for time, label in marks if label.lower() == "end"), 0.0)
    marks = [(time, label) for time, label in marks if label.lower() != "end"]
    if not marks:
        raise ConfigError([f"{file}: no section in this annotation"])
    duration = max(duration, end, marks[-1][0] + 0.001)
    downbeats = [time for time, position in beats if position == 1]
    first = downbeats[0] if downbeats else (downbeat or 0.0)
    numbers = [_bar(time, first, downbeats, bpm) for time, _ in marks]
    sections, last = [], 0
    for (time, label), number in zip(marks, numbers, strict=True):
        number = number if number is not None and number > last else None  # two sections in one bar: the second has none
        last = number or last
        ours = label if label in LABELS else labels.get(label)
        sections.append(Section(time=time, label=ours, bar=number, original="" if label == ours else label))
    audio = Audio(file=file, duration=duration, bpm=bpm, downbeat=first)
    return Annotation(metadata=metadata or Metadata(), audio=audio, structure=tuple(sections))


def _bar(time: float, first: float, downbeats: Sequence[float], bpm: float | None) -> int | None:
    if downbeats:
        return max(1, bisect_right(downbeats, time + 0.25))
    return max(1, 1 + round((time - first) * bpm / 240)) if bpm else None
