"""Several data sets as one: their segments where they lie, a weight for each set, and no recording twice.

    python -m music_training.library.combine everything fma_small=1 jamendo=0.5

What is doubled across the sets is dropped from the later one: exactly by the hash of the decoded audio, nearly (another
encode or gain, a cut of up to a second) by fingerprints. The result is a data set like any other: an index and a
catalogue under its own name, divided by artist over all sets together, so that nobody stands on two sides.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from .. import config, files, stages
from ..errors import UserError
from . import catalogue, duplicates, fingerprints, manifests, records


class CombineSettings(config.Settings):
    """``datasets`` to their weights: the share of the time that each is drawn, whatever its size; earlier sets keep doubles."""

    datasets: dict[str, float] = Field(min_length=1)
    near: bool = True
    workers: int = Field(0, ge=0)
    split: manifests.ManifestSettings = manifests.ManifestSettings()

    @model_validator(mode="after")
    def _check(self) -> CombineSettings:
        wrong = {name: weight for name, weight in self.datasets.items() if not weight > 0}
        if wrong:
            raise ValueError(f"datasets: weights are above 0, leave a set out that is not wanted (got {wrong})")
        return self


def combine(name: str, scope: str, settings: CombineSettings, scheduler: str = "") -> stages.StageResult:
    """Write index, catalogue and ``dropped.csv`` of the union ``name``, then its manifests; copies no audio."""
    if name in settings.datasets:
        raise UserError(f"combine: {name!r} is one of the data sets that go into it; give the union another name")
    if settings.near:
        for dataset in settings.datasets:
            fingerprints.make(dataset, f"{scope}/{dataset}", settings.workers, scheduler)
    inputs = [place(dataset) for dataset in settings.datasets for place in (manifests.index_of, catalogue.path_of)]

    def make(_: stages.Draft) -> stages.Made:
        segments, tracks = _read(settings)
        dropped = _doubles(segments, settings)
        kept = [row for row in segments if row["path"] not in dropped]
        weights = _weights(Counter(row["dataset"] for row in kept), settings.datasets)
        lines = [json.dumps({**row, "weight": round(weights[row["dataset"]], 6)}, ensure_ascii=False) + "\n" for row in kept]
        used = {row["track"] for row in kept}
        chosen = {track.id: track for track in reversed(tracks) if track.id in used}
        outputs = [
            files.write_text(manifests.index_of(name), "".join(lines)),
            catalogue.write(catalogue.path_of(name), chosen.values()),
            records.attribution(catalogue.path_of(name).parent, chosen.values()),
            files.write_text(manifests.index_of(name).with_name("dropped.csv"), records.table(("path", "reason"), sorted(dropped.items()))),
        ]
        counts = Counter(row["dataset"] for row in kept)
        return stages.Made(outputs, {"segments": dict(counts), "dropped": len(dropped), "hours": round(_hours(kept), 3)})

    params = {"name": name, **settings.model_dump(exclude={"workers", "split"})}
    made = stages.run("combine", make, scope=scope, params=params, inputs=inputs)
    manifests.build(name, scope, settings.split)
    return made


def _read(settings: CombineSettings) -> tuple[list[dict[str, Any]], list[catalogue.Track]]:
    segments, tracks, owner = [], [], {}
    for dataset in settings.datasets:
        tracks += catalogue.read(catalogue.path_of(dataset))
        for row in manifests.read_lines(manifests.index_of(dataset)):
            if owner.setdefault(row["path"], dataset) == dataset:
                segments.append({**row, "dataset": dataset})
    return segments, tracks


def _doubles(segments: list[dict[str, Any]], settings: CombineSettings) -> dict[str, str]:
    """Path to reason of every segment that is there before, in the order of the sets."""
    same = duplicates.exact((row["path"], row["sha256"]) for row in segments)
    dropped = {path: f"the same audio as {first}" for path, first in same.items()}
    if settings.near:
        prints = {}
        for dataset in settings.datasets:
            for track, words in fingerprints.read(fingerprints.path_of(dataset)).items():
                prints.setdefault(track, words)
        near = fingerprints.near(prints)
        for row in segments:
            if row["track"] in near:
                dropped.setdefault(row["path"], f"the same recording as track {near[row['track']]}")
    return dropped


def _weights(counts: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, float]:
    """The weight of a segment of each set: 1 on average, and each set's sum in proportion to its share."""
    total, together = sum(counts.values()), sum(shares[name] for name in counts)
    return {name: shares[name] / together * total / count for name, count in counts.items()}


def _hours(rows: list[dict[str, Any]]) -> float:
    return sum(row["duration"] for row in rows) / 3600


def _main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the name of the union")
    parser.add_argument("datasets", nargs="+", metavar="DATASET=WEIGHT")
    parser.add_argument("--exact-only", action="store_true", help="drop no near-duplicates")
    parser.add_argument(
        "--scheduler", default="", metavar="tcp://HOST:PORT", help="let the workers of a dask scheduler make the fingerprints"
    )
    given = parser.parse_args()
    pairs = (text.partition("=") for text in given.datasets)
    datasets = {name: config.parse_yaml(weight or "1", f"the weight of {name}") for name, _, weight in pairs}
    settings = config.load(CombineSettings, {"datasets": datasets, "near": not given.exact_only}, name="the command line")
    print(combine(given.name, f"combine/{given.name}", settings, given.scheduler).result)


if __name__ == "__main__":
    from ..errors import run_command

    run_command(_main)
