"""The same tracks on the same sides of the split, cut into longer (or shorter) segments.

A model that is to learn 30 s needs clips of 30 s: padding 10 s clips teaches silence. :func:`provide` makes the data set
``<dataset>_30s`` from the tracks of ``<dataset>`` that are long enough, and every artist stays on the side where the
first division put it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .. import files, stages
from ..errors import UserError
from . import catalogue, manifests, segments

TOLERANCE = 0.005  # of the length: 29.977 s, as FMA's clips last, count as 30 s


def is_enough(duration: float, seconds: float) -> bool:
    """Whether a clip of ``duration`` counts as one of ``seconds``."""
    return duration >= seconds * (1 - TOLERANCE)


def name_of(dataset: str, seconds: float) -> str:
    """The data set that holds the segments of another length."""
    return f"{dataset}_{seconds:g}s"


def clip_seconds(dataset: str) -> list[float]:
    """Durations of the training clips of a data set, ascending; UserError where it has not been segmented."""
    return sorted(row["duration"] for row in manifests.read_lines(manifests.egs_of(dataset) / "train" / "data.jsonl"))


def serves(dataset: str, seconds: float) -> bool:
    """Whether nearly all (95%) clips of a data set are long enough as they are."""
    durations = clip_seconds(dataset)
    return bool(durations) and is_enough(durations[len(durations) // 20], seconds)


def provide(dataset: str, scope: str, seconds: float, workers: int = 0) -> str:
    """The name of a data set with clips of ``seconds`` from the tracks and the split of ``dataset``; made if need be.

    Raises UserError where the tracks are too short, or where a side of the split has none that is long enough.
    """
    if serves(dataset, seconds):
        return dataset
    long_enough = sources(dataset, seconds)
    name = name_of(dataset, seconds)
    listed = catalogue.write(catalogue.path_of(name), long_enough)
    settings = segments.SegmentSettings(segment_seconds=seconds, keep_remainder=1 - TOLERANCE, workers=workers)
    segments.segment(name, scope, settings)
    _divide(dataset, name, scope, listed)
    return name


def sources(dataset: str, seconds: float) -> list[catalogue.Track]:
    """The tracks of a data set that are long enough and stand in its manifests; UserError where there is none."""
    path = catalogue.path_of(dataset)
    if not path.is_file():
        raise UserError(f"{dataset}: clips of {seconds:g} s are needed and there is no catalogue to cut them from; run 02 and 03 first")
    known = {row["track"]: row["start"] + row["duration"] for row in manifests.read_lines(manifests.index_of(dataset))}
    tracks = {track.id: track for track in catalogue.read(path) if track.id in known}
    lengths = {name: max(track.duration or _probe(track), known[name]) for name, track in tracks.items()}
    found = [tracks[name] for name, duration in lengths.items() if is_enough(duration, seconds)]
    if not found:
        longest = max(lengths.values(), default=0.0)
        raise UserError(
            f"{dataset}: clips of {seconds:g} s are needed and the longest of its {len(lengths)} tracks has {longest:.4g} s; "
            "give longer audio, or leave this stage out"
        )
    return found


def _probe(track: catalogue.Track) -> float:
    """The duration that a file's header states (s); 0 where it states none."""
    import soundfile

    try:
        return soundfile.info(files.absolute(track.path)).duration
    except (soundfile.LibsndfileError, OSError):
        return 0.0


def _divide(dataset: str, name: str, scope: str, listed: Path) -> None:
    decision = manifests.egs_of(dataset) / "split.json"

    def make(_: stages.Draft) -> stages.Made:
        places = _places(dataset)
        rows = manifests.read_lines(manifests.index_of(name))
        splits = {split: [row for row in rows if places.get(row["track"]) == split] for split in sorted(set(places.values()))}
        empty = [split for split, items in splits.items() if not items and split != "test"]
        if empty:
            raise UserError(
                f"{dataset}: no track on the side {empty[0]!r} is long enough for {name}; give longer audio, or leave this stage out"
            )
        written = [_write(name, split, items) for split, items in splits.items()]
        known = files.read_json(decision)
        content = {**known, "dataset": name, "index": files.relative(manifests.index_of(name)), "as": dataset}
        written.append(files.write_json(manifests.egs_of(name) / "split.json", content))
        return stages.Made(written, {split: len(items) for split, items in splits.items()})

    inputs = [manifests.index_of(name), decision, listed]
    stages.run("build_manifests", make, scope=scope, params={"dataset": name, "as": dataset}, inputs=inputs)


def _write(name: str, split: str, rows: Iterable[dict]) -> Path:
    keys = {
        "path": "path",
        "duration": "duration",
        "sample_rate": "sample_rate",
        "amplitude": "peak",
        "weight": "weight",
        "info_path": "info_path",
    }
    lines = (json.dumps({key: row.get(source) for key, source in keys.items()}, ensure_ascii=False) + "\n" for row in rows)
    return files.write_text(manifests.egs_of(name) / split / "data.jsonl", "".join(lines))


def _places(dataset: str) -> dict[str, str]:
    """The side of every track: where all of its segments stand, or, where the split went through tracks, most of them."""
    tracks = {row["path"]: row["track"] for row in manifests.read_lines(manifests.index_of(dataset))}
    votes: dict[str, Counter] = {}
    for manifest in sorted(manifests.egs_of(dataset).glob("*/data.jsonl")):
        for row in manifests.read_lines(manifest):
            votes.setdefault(tracks[row["path"]], Counter())[manifest.parent.name] += 1
    return {track: counts.most_common(1)[0][0] for track, counts in votes.items()}
