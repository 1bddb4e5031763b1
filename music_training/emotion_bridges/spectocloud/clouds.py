"""Clouds on disk: ``<hash>.npy`` holds 1200 positions ``[1200, 3]`` float32, ``colours/<hash>.npy`` their colours.

The hash is that of the audio, the clip and the emotion. A file that is there is taken only if it holds what it must.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy

from ... import files, parallel
from ...errors import UserError
from ...progress import progress
from ..manifests import Entry
from . import mel, targets

POINTS, SECONDS = 1200, 8.0
VERSION = 1


def folder(clouds_dir: str | None = None) -> Path:
    """Where clouds lie: ``outputs/data/clouds``, or the folder that a person names."""
    return Path(clouds_dir).expanduser().resolve() if clouds_dir else files.outputs_root() / "data" / "clouds"


def precompute(entries: Sequence[Entry], clouds_dir: str | None = None, workers: int = 1) -> list[Entry]:
    """Make the cloud of each row's loudest 8 s, and return the rows with ``target_pointcloud_path`` and ``start``."""
    make = partial(_make, folder(clouds_dir))
    made = parallel.map_processes(make, entries, workers)
    return list(progress(made, "clouds", total=len(entries), unit="clouds"))


def read(path: Path, points: int, emotion: Sequence[float]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Positions and colours of a cloud file; UserError for one that is not a cloud. Without colours, those of the emotion."""
    path = files.absolute(path)
    cloud = _load(path, points, -1.0)
    if cloud is None:
        raise UserError(f"{path}: not a cloud of {points} x 3 float32 in [-1, 1]; build the manifests with --generate-clouds again")
    tint = _load(path.parent / "colours" / path.name, points, 0.0)
    return cloud, targets.colours(cloud, numpy.asarray(emotion)) if tint is None else tint


def _make(target: Path, entry: Entry) -> Entry:
    """The row with its cloud; runs in a worker process."""
    source = files.absolute(entry.audio_path)
    identity = [files.digest(source), entry.emotion, POINTS, SECONDS, VERSION]
    path = target / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}.npy"
    frames = mel.of_file(source)
    count = round(SECONDS * mel.FRAME_RATE)
    start = _loudest(frames, count)
    tinted = path.parent / "colours" / path.name
    if _load(path, POINTS, -1.0) is None or _load(tinted, POINTS, 0.0) is None:
        cloud, tint = targets.target(mel.clip(frames, start, count), numpy.asarray(entry.emotion), POINTS)
        for place, content in ((path, cloud), (tinted, tint)):
            with files.atomic(place) as temporary, open(temporary, "wb") as stream:
                numpy.save(stream, content)
    return replace(entry, target_pointcloud_path=files.relative(path), start=start / mel.FRAME_RATE)


def _loudest(frames: numpy.ndarray, count: int) -> int:
    """The first frame of the loudest stretch."""
    power = numpy.exp(frames.astype(numpy.float32)).sum(1)
    total = numpy.append(0.0, numpy.cumsum(power, dtype=numpy.float64))
    return int((total[count:] - total[:-count]).argmax()) if len(power) > count else 0


def _load(path: Path, points: int, low: float) -> numpy.ndarray | None:
    try:
        found = numpy.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    right = found.shape == (points, 3) and found.dtype == numpy.float32
    return found if right and numpy.isfinite(found).all() and found.min() >= low and found.max() <= 1.0 else None
