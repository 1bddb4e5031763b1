"""The part of the preflight that looks at the data: manifests, audio files, sidecars, and what both splits share.

A finding says how many files have a fault, and names some. Audio is decoded on a sample, or on all files; what the
manifest says is compared with all of it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from music_training import files
from music_training.errors import UserError
from music_training.library import audio, manifests
from training_checks.report import Finding, Severity

MADE_BY = "run 03_segment_audio again"
FIELDS = ("title", "artist", "key", "bpm", "genre", "moods", "description", "name", "instrument")  # AudioCraft's own
FULL = 0.999  # of full scale


@dataclass(frozen=True)
class Limits:
    """What audio has to be like: levels in dB of full scale, shares of a clip's samples, lengths in seconds."""

    sample_rate: int = 32000
    channels: int = 1
    segment_seconds: float = 0.0  # 0: any length will do
    silence_db: float = -60.0
    dc_offset: float = 0.05
    clipped_share: float = 0.01  # of samples in flat tops of 4 and more
    length_tolerance: float = 0.005  # 29.977 s is 30 s


@dataclass
class Split:
    """A manifest and what it holds: one row for each clip."""

    name: str
    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)


def read_splits(dataset: str) -> tuple[list[Split], list[Finding]]:
    """The manifests of a data set and what is wrong with them as files."""
    found, splits = [], []
    for name in ("train", "valid", "test"):
        path = manifests.egs_of(dataset) / name / "data.jsonl"
        if not path.is_file():
            if name != "test":
                found.append(Finding("fault", f"{name} manifest", f"{path}: not there", "run 03_segment_audio first"))
            continue
        split = Split(name, path)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                split.rows.append({**row, "path": str(row["path"]), "duration": float(row["duration"])})
            except (ValueError, KeyError, TypeError):
                found.append(Finding("fault", f"{name} manifest", f"{path}:{number}: not a manifest line ({line[:60]!r})", MADE_BY))
                break
        if not split.rows:
            found.append(
                Finding("fault", f"{name} manifest", f"{path}: no clips in it", "give more audio, or another split, to 03_segment_audio")
            )
        splits.append(split)
    return splits, found


def lengths(split: Split, limits: Limits) -> list[Finding]:
    """Clips that are shorter than a training example: AudioCraft pads them with zeros, and silence is learnt."""
    if not limits.segment_seconds:
        return []
    least = limits.segment_seconds * (1 - limits.length_tolerance)
    short = [row for row in split.rows if row["duration"] < least]
    if not short:
        return []
    share = len(short) / len(split.rows)
    worst = min(row["duration"] for row in short)
    message = (
        f"{len(short)} of {len(split.rows)} clips are shorter than the {limits.segment_seconds:g} s of an example (shortest {worst:.2f} s)"
    )
    nearly = worst >= 0.9 * limits.segment_seconds
    todo = "the missing end is padded with silence: choose segment_seconds in 03_segment_audio at least as long, or a shorter example"
    severity: Severity = "fault" if share > 0.5 and not nearly else "note" if nearly and share <= 0.5 else "warning"
    return [Finding(severity, f"{split.name} lengths", message, todo)]


@dataclass
class Faults:
    """Files by what is wrong with them, in the order they were looked at."""

    by_kind: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    looked_at: int = 0

    def add(self, kind: str, path: str, detail: str = "") -> None:
        """Note a file."""
        self.by_kind.setdefault(kind, []).append((path, detail))


# kind: severity of a single one, what to do
KINDS: dict[str, tuple[Severity, str]] = {
    "missing": ("fault", MADE_BY + " (it makes what is gone)"),
    "undecodable": ("fault", "delete the source file, then " + MADE_BY),
    "not finite": ("fault", "one NaN poisons the whole model: delete the source file, then " + MADE_BY),
    "truncated": ("warning", "the file ends before its stated length: " + MADE_BY),
    "wrong sample rate": ("fault", MADE_BY),
    "wrong channels": ("fault", MADE_BY),
    "silent": ("warning", "silence is learnt as music: delete it, or raise silence_db in 03_segment_audio"),
    "clipped": ("note", "take a better source if you can; it is trained on as it is"),
    "DC offset": ("warning", "remove the offset (a high-pass at 20 Hz), then " + MADE_BY),
}


def listen(paths: list[tuple[str, float]], limits: Limits, sound: bool = True, raw: bool = False) -> Faults:
    """Decode files (``(path, stated seconds)``) and note what is wrong; ``raw``: sources, whose rate and channels may differ."""
    faults = Faults()
    for name, stated in paths:
        path = files.absolute(name)
        faults.looked_at += 1
        if not path.is_file():
            faults.add("missing", name)
        elif sound:
            _listen_to(path, name, stated, limits, raw, faults)
    return faults


def _listen_to(path: Path, name: str, stated: float, limits: Limits, raw: bool, faults: Faults) -> None:
    count = 0
    total = power = peak = flat = 0.0
    finite = True
    try:
        with audio.open_stream(path) as stream, np.errstate(all="ignore"):
            rate, channels = stream.sample_rate, stream.channels
            for block in stream.blocks:
                mean = audio.average(block)
                finite = finite and bool(np.isfinite(block).all())
                count += len(block)
                total += float(mean.sum(dtype=np.float64))
                power += float(np.square(mean, dtype=np.float64).sum())
                peak = max(peak, float(np.abs(block).max(initial=0.0)))
                flat += _flat_tops(block[:, 0])
            declared = (stream.declared or 0) / rate
    except audio.DecodeError as error:
        faults.add("undecodable" if not count else "truncated", name, str(error))
        return
    except UserError as error:
        faults.add("undecodable", name, str(error))
        return
    if not raw and rate != limits.sample_rate:
        faults.add("wrong sample rate", name, f"{rate} Hz")
    if not raw and channels != limits.channels:
        faults.add("wrong channels", name, str(channels))
    seconds = count / rate
    expected = max(stated, declared)
    if expected - seconds > max(0.5 if raw else 0.05, 0.02 * expected):
        faults.add("truncated", name, f"{seconds:.2f} s of {expected:.2f} s")
    if not finite:
        faults.add("not finite", name)
    elif not count or 10 * math.log10(max(power / count, 1e-20)) < limits.silence_db:
        faults.add("silent", name)
    else:
        if abs(total / count) > limits.dc_offset:
            faults.add("DC offset", name, f"{total / count:.3f}")
        if peak >= FULL and flat / count > limits.clipped_share:
            faults.add("clipped", name, f"{flat / count:.1%} of the samples")


def _flat_tops(x: np.ndarray) -> int:
    """Samples in runs of 4 and more at one level near full scale: cut tops. A limiter's tops are not level."""
    high = np.abs(x) >= FULL
    if not high.any():
        return 0
    same = np.concatenate([[0], (high[1:] & high[:-1] & (np.abs(x[1:] - x[:-1]) < 1e-4)).view(np.int8), [0]])
    edges = np.flatnonzero(np.diff(same))
    runs = edges[1::2] - edges[::2] + 1
    return int(runs[runs >= 4].sum())


def audio_findings(faults: Faults, what: str, whole: int) -> list[Finding]:
    """One finding for each kind of fault."""
    found = []
    for kind, items in faults.by_kind.items():
        severity, todo = KINDS[kind]
        share = len(items) / max(1, faults.looked_at)
        if severity == "warning" and kind in ("silent", "DC offset") and share > 0.2:
            severity = "fault"
        path, detail = items[0]
        examples = f"{path}{f' ({detail})' if detail else ''}" + (f" and {len(items) - 1} more" if len(items) > 1 else "")
        message = f"{len(items)} of {faults.looked_at} files looked at{'' if faults.looked_at == whole else f' (of {whole})'}: {examples}"
        found.append(Finding(severity, f"{what}: {kind}", message, todo))
    return found


def sidecars(splits: list[Split], needed: bool, sample: int, fix: bool = False) -> list[Finding]:
    """The ``.json`` beside each clip: MusicGen's data set reads it and fails on a missing field. ``fix`` adds empty ones."""
    missing, incomplete, mended = [], [], 0
    for name, _ in chosen(splits, sample):
        path = files.absolute(name).with_suffix(".json")
        content = files.read_json(path)
        if not isinstance(content, dict):
            missing.append(name)
            continue
        lacking = [key for key in FIELDS if key not in content]
        if lacking and fix:
            files.write_json(path, {**content, **{key: [] if key == "moods" else "" for key in lacking}})
            mended += 1
        elif lacking:
            incomplete.append(f"{files.relative(path)} ({', '.join(lacking)})")
    severity: Severity = "fault" if needed else "note"
    found = [Finding("ok", "sidecars", f"added empty fields to {mended} of them")] if mended else []
    if missing:
        found.append(Finding(severity, "sidecars", f"{len(missing)} clips have none that can be read, such as {missing[0]}", MADE_BY))
    if incomplete:
        message = f"{len(incomplete)} lack fields that AudioCraft reads: {incomplete[0]}"
        found.append(Finding(severity, "sidecars", message, "preflight.py --fix adds them empty, or " + MADE_BY))
    return found


def chosen(splits: list[Split], sample: int) -> list[tuple[str, float]]:
    """Clips spread evenly over the splits, ``(path, stated seconds)``; ``sample`` 0: all of them."""
    found = []
    for split in splits:
        count = min(sample, len(split.rows)) if sample else len(split.rows)
        rows = [split.rows[number * len(split.rows) // count] for number in range(count)] if count else []
        found += [(row["path"], row["duration"]) for row in rows]
    return found


def leakage(dataset: str) -> list[Finding]:
    """Artists, tracks or audio that stand on two sides of the split."""
    decision = files.read_json(manifests.egs_of(dataset) / "split.json")
    if decision is None:
        return [Finding("warning", "split", "no split.json: who stands on which side is not known", MADE_BY)]
    try:
        shared = manifests.leakage(manifests.egs_of(dataset))
    except (KeyError, UserError):  # a line of the manifest that the index does not know
        return [Finding("warning", "split", "the manifests and the index of the segments do not belong together", MADE_BY)]
    found = []
    for kind, items in shared.items():
        if not items:
            continue
        what = {"artists": "artists", "tracks": "tracks", "sha256s": "clips of identical audio"}[kind]
        known = decision["rule"] in ("track", "segment") and kind == "artists" or decision["rule"] == "segment" and kind == "tracks"
        message = f"{len(items)} {what} stand in more than one split, such as {items[0][:60]}"
        todo = "too few artists to do better: what is measured flatters; give more audio" if known else MADE_BY
        found.append(Finding("warning" if known else "fault", "split", message, todo))
    return found


def drop_bad(splits: list[Split], faults: Faults) -> list[Finding]:
    """The safe mending of a manifest: lines of clips that cannot be trained on move to ``data.removed.jsonl``."""
    bad = {path for kind in ("missing", "undecodable", "not finite") for path, _ in faults.by_kind.get(kind, [])}
    found = []
    for split in splits:
        lines = split.path.read_text(encoding="utf-8").splitlines(keepends=True)
        removed = [line for line in lines if json.loads(line)["path"] in bad]
        if removed and len(removed) < len(lines):
            aside = split.path.with_name("data.removed.jsonl")
            before = aside.read_text(encoding="utf-8") if aside.is_file() else ""
            files.write_text(aside, before + "".join(removed))
            files.write_text(split.path, "".join(line for line in lines if line not in removed))
            split.rows = [row for row in split.rows if row["path"] not in bad]
            found.append(Finding("ok", f"{split.name} manifest", f"moved {len(removed)} lines to {files.relative(aside)}"))
    return found
