"""Divides segments into train, valid and test by artist and writes the manifests that AudioCraft reads.

``outputs/egs/<dataset>/<split>/data.jsonl`` holds a line per segment: path (relative to the outputs root), duration
(s), sample_rate, amplitude, weight, info_path; the sidecar with the music's attributes lies beside each segment.
``split.json`` beside the splits says by which rule they were made and where every artist went.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from .. import files, stages
from ..config import Settings
from ..errors import UserError

TRIES = 64  # orders that are tried so that few artists of unequal length come close to the shares


class ManifestSettings(Settings):
    """Shares of the audio's duration, and whether folders of links are made beside the manifests."""

    train: float = Field(0.9, gt=0, le=1)
    valid: float = Field(0.1, gt=0, le=1)
    test: float = Field(0.0, ge=0, le=1)
    seed: int = 0
    links: bool = False

    @model_validator(mode="after")
    def _sum(self) -> ManifestSettings:
        if abs(self.train + self.valid + self.test - 1) > 1e-6:
            raise ValueError(f"train, valid and test have to add up to 1, not {self.train + self.valid + self.test:g}")
        return self

    def shares(self) -> dict[str, float]:
        """The splits that are asked for with their shares."""
        return {name: share for name in ("train", "valid", "test") if (share := getattr(self, name)) > 0}


def index_of(dataset: str) -> Path:
    """The index of a data set's segments, one JSON line each."""
    return files.outputs_root() / "segments" / dataset / "segments.jsonl"


def egs_of(dataset: str) -> Path:
    """The folder that holds a data set's manifests."""
    return files.outputs_root() / "egs" / dataset


def build(dataset: str, scope: str, settings: ManifestSettings) -> stages.StageResult:
    """Write the manifests of a data set; the result holds ``rule`` and per split ``artists``, ``segments``, ``seconds``.

    Raises UserError where there are fewer segments than splits.
    """
    index, egs = index_of(dataset), egs_of(dataset)

    def make(_: stages.Draft) -> stages.Made:
        segments = read_lines(index)
        rule, place = divide(segments, settings.shares(), settings.seed)
        splits: dict[str, list[dict[str, Any]]] = {name: [] for name in settings.shares()}
        for segment in segments:
            splits[place[segment["path"]]].append(segment)
        for name in {"train", "valid", "test"} - set(splits):
            (egs / name / "data.jsonl").unlink(missing_ok=True)
        written = []
        for name, rows in splits.items():
            lines = [json.dumps(_line(row), ensure_ascii=False) + "\n" for row in rows]
            written.append(files.write_text(egs / name / "data.jsonl", "".join(lines)))
            if settings.links:
                _link(egs / name / "audio", rows)
        summary = {name: _figures(rows) for name, rows in splits.items()}
        written.append(files.write_json(egs / "split.json", {**_decision(dataset, rule, settings, splits), "splits": summary}))
        return stages.Made(written, {"rule": rule, "splits": summary})

    params = {"dataset": dataset, **settings.model_dump()}
    return stages.run("build_manifests", make, scope=scope, params=params, inputs=[index])


def divide(segments: list[dict[str, Any]], shares: Mapping[str, float], seed: int) -> tuple[str, dict[str, str]]:
    """Decide the split of every segment: ``(rule, {path: split})``, rule one of "artist", "track", "segment".

    By artist wherever every split gets one; a warning is printed where only tracks or segments can be told apart.
    """
    for rule, key in (("artist", "artist"), ("track", "track"), ("segment", "path")):
        seconds: dict[str, float] = {}
        for segment in segments:
            seconds[segment[key]] = seconds.get(segment[key], 0.0) + segment["duration"]
        if len(seconds) >= len(shares):
            place = assign(seconds, shares, seed)
            if rule != "artist":
                print(
                    f"warning: too few artists for {len(shares)} splits: divided by {rule}, "
                    f"so that train and {' and '.join(list(shares)[1:])} share artists and what is measured there flatters",
                    flush=True,
                )
            return rule, {segment["path"]: place[segment[key]] for segment in segments}
    raise UserError(f"{len(segments)} segments cannot be divided into {len(shares)} splits; give more audio")


def assign(seconds: Mapping[str, float], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Give every artist (or track) with its duration a split, so that durations approach the shares and none is empty.

    Depends on names, durations and the seed, not on their order. Names are taken in the order of their hashes, each by
    the split that lacks most; of several such orders the one that comes closest to the shares is kept. A decision made
    for one segment length holds for every other: keep it.
    """
    total = sum(seconds.values()) or 1.0
    best: tuple[float, dict[str, str]] | None = None
    for attempt in range(max(1, min(TRIES, 20000 // max(1, len(seconds))))):
        order = sorted(seconds, key=lambda name: hashlib.sha256(f"{seed}\t{attempt}\t{name}".encode()).digest())
        lack = {split: share * total for split, share in shares.items()}
        empty, place = list(shares), {}
        for position, name in enumerate(order):
            open_splits = empty if len(order) - position <= len(empty) else shares
            split = max(open_splits, key=lack.__getitem__)
            place[name] = split
            lack[split] -= seconds[name]
            if split in empty:
                empty.remove(split)
        miss = sum(abs(value) for value in lack.values())
        if best is None or miss < best[0] - 1e-9:
            best = miss, place
    return best[1] if best else {}


def leakage(egs: Path | str) -> dict[str, list[str]]:
    """Artists, tracks and audio (SHA-256 of the samples) that stand in more than one split; all lists empty: none leaks."""
    egs = Path(egs)
    decision = files.read_json(egs / "split.json")
    if decision is None:
        raise UserError(f"{egs}: no split.json; build the manifests first (notebook 03_segment_audio)")
    index = {row["path"]: row for row in read_lines(files.absolute(decision["index"]))}
    found: dict[str, dict[str, set[str]]] = {"artist": {}, "track": {}, "sha256": {}}
    for manifest in sorted(egs.glob("*/data.jsonl")):
        for line in read_lines(manifest):
            for key, values in found.items():
                values.setdefault(index[line["path"]][key], set()).add(manifest.parent.name)
    return {f"{key}s": sorted(value for value, splits in values.items() if len(splits) > 1) for key, values in found.items()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; UserError where there is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run notebook 03_segment_audio first")
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of AudioCraft's manifest; ``info_path`` is for sidecars inside a zip, others are found by their name."""
    known = {"path": row["path"], "duration": row["duration"], "sample_rate": row["sample_rate"]}
    return {**known, "amplitude": row["peak"], "weight": row.get("weight"), "info_path": None}


def _figures(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    rows = list(rows)
    seconds = round(sum(row["duration"] for row in rows), 3)
    counts = {f"{key}s": len({row[key] for row in rows}) for key in ("artist", "track")}
    return {**counts, "segments": len(rows), "seconds": seconds}


def _decision(dataset: str, rule: str, settings: ManifestSettings, splits: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What ``split.json`` says: the rule, the seed, and under each split its artists, or tracks or segments, by that rule."""
    key = {"artist": "artist", "track": "track", "segment": "path"}[rule]
    places = {name: sorted({row[key] for row in rows}) for name, rows in splits.items()}
    index = files.relative(index_of(dataset))
    return {"dataset": dataset, "index": index, "rule": rule, "seed": settings.seed, "shares": settings.shares(), f"{rule}s": places}


def _link(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A folder of relative links to the segments and their sidecars, for programs that want a folder."""
    with files.atomic(folder) as temporary:
        temporary.mkdir()
        for row in rows:
            audio = files.absolute(row["path"])
            for path in (audio, audio.with_suffix(".json")):
                (temporary / path.name).symlink_to(os.path.relpath(path, folder))
