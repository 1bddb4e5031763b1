"""A sign of life of a training, for those who look from outside: ``outputs/training/<run>/heartbeat.json``.

It says when it was written, by which process, and at which step; a training that ends as it should takes it away.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

from . import files, runs

EVERY = 5.0  # seconds between two signs, so that a slow volume is spared
NAME = "heartbeat.json"


class Heartbeat:
    """Writes the sign of life of ``run``; :meth:`beat` may be called at every step."""

    def __init__(self, run: Path):
        self.path = Path(run) / NAME
        self._next = 0.0

    def beat(self, step: int) -> None:
        """Say that ``step`` is reached, at most every few seconds; a disk that is full is no reason to stop for."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        with contextlib.suppress(OSError):
            content = {"time": time.time(), "step": step, "process": os.getpid(), "host": platform.node()}
            files.write_json(self.path, content)

    def end(self) -> None:
        """Take the sign away: there is nothing to wait for any more."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Sign:
    """The latest sign of life: of which training (its run's name without the time), at which step, when (s since 1970)."""

    training: str
    step: int
    time: float


def latest(since: float) -> Sign | None:
    """The latest sign that a training on this machine gave after ``since`` (s since 1970); None where there is none."""
    signs = []
    for path in runs.folder().glob(f"*/{NAME}"):
        content = files.read_json(path)
        if content and content["host"] == platform.node() and content["time"] >= since:
            signs.append(Sign(re.sub(r"run_\d{8}_\d{6}_", "", path.parent.name), content["step"], content["time"]))
    return max(signs, key=lambda sign: sign.time, default=None)
