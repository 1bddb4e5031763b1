"""What a download or a segmentation will cost before it starts: bytes, files (inodes) and time, and whether the disk holds it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

RATE = 25e6  # bytes/s from a public server to a pod, assumed where nothing was measured
SEGMENT_BYTES = 640_044  # 10 s, 32 kHz, 16 bit, mono, with its header
SEGMENT_SPEED = (
    300.0  # seconds of audio that one core cuts in a second: half of what benchmarks/segment_scaling.py measured on a local disk
)


@dataclass(frozen=True)
class Row:
    """One step: bytes over the network, bytes and files that it leaves, the largest need in between (bytes), hours."""

    step: str
    download: int
    disk: int
    files: int
    peak: int
    hours: float
    note: str = ""


def row(step: str, download: float, disk: float, files: int, *, peak: float = 0, rate: float = RATE, note: str = "") -> Row:
    """A row of a download; its time is the assumed ``rate`` (bytes/s)."""
    return Row(step, int(download), int(disk), files, int(max(peak, disk)), download / rate / 3600, note)


def segmentation(seconds: float, tracks: int, workers: int = 1) -> Row:
    """What cutting ``seconds`` of audio into 10 s segments leaves and takes."""
    segments = int(seconds / 10.0) + tracks
    return Row(
        "segments", 0, segments * SEGMENT_BYTES, segments, segments * SEGMENT_BYTES, seconds / SEGMENT_SPEED / max(1, workers) / 3600
    )


def table(rows: Iterable[Row]):
    """The rows as a table in GB (10^9 bytes) and hours, with a last line for all of them."""
    import pandas

    rows = list(rows)
    columns = ["step", "download GB", "disk GB", "peak GB", "files", "hours", "note"]
    lines = [[r.step, r.download / 1e9, r.disk / 1e9, r.peak / 1e9, r.files, r.hours, r.note] for r in rows]
    total = ["together", *(sum(line[place] for line in lines) for place in (1, 2)), peak(rows) / 1e9]
    lines.append([*total, sum(r.files for r in rows), sum(r.hours for r in rows), ""])
    return pandas.DataFrame(lines, columns=columns).round(3)


def lines(rows: Iterable[Row]) -> list[str]:
    """The rows as text, for a terminal."""
    return [
        f"{r.step}: {r.download / 1e9:.2f} GB to fetch, {r.disk / 1e9:.2f} GB and {r.files} files to keep, "
        f"{r.peak / 1e9:.2f} GB at most, about {r.hours:.2f} h{f' ({r.note})' if r.note else ''}"
        for r in rows
    ]


def peak(rows: Iterable[Row]) -> int:
    """The largest need of disk when the rows are done one after the other (bytes)."""
    kept = most = 0
    for r in rows:
        most = max(most, kept + r.peak)
        kept += r.disk
    return most


def refuse(rows: Iterable[Row], folder: Path, there: int = 0) -> None:
    """UserError where the disk of ``folder`` holds not the bytes or not the files; ``there`` bytes are on it already."""
    rows = list(rows)
    while not folder.exists():
        folder = folder.parent
    disk = os.statvfs(folder)
    free, needed, inodes = disk.f_bavail * disk.f_frsize, peak(rows) - there, sum(r.files for r in rows)
    if needed > free:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; choose less (limit, genres) or another dest"
        )
    if disk.f_files and inodes > disk.f_favail:  # some file systems count no inodes and say 0
        raise UserError(
            f"{folder}: {inodes} files are needed and {disk.f_favail} inodes are free; choose less (limit, genres) or another dest"
        )
