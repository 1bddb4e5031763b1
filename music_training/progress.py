"""One progress helper: a widget bar in a live JupyterLab, plain timed lines everywhere else.

Headless runs (papermill, a terminal, a log file) get a line at the start, every ``LINE_EVERY`` seconds and at the end,
so that an executed notebook never collects thousands of outputs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY = 10.0  # seconds


class Progress:
    """Counts towards ``total`` units; shows rate and ETA. Use as a context manager, or :func:`progress` for a loop.

    ``done`` units were done before (a resumed run) and do not count for the rate.
    """

    def __init__(self, total: float | None, label: str, unit: str = "it", done: float = 0.0):
        self.total, self.label, self.unit = total, label, unit
        self.count, self._before, self._note = done, done, ""
        self._start = self._last = time.monotonic()
        self._bar = _widget(label, total) if live() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind, *_: object) -> None:
        self._show("stopped" if kind else "done")

    def update(self, amount: float = 1, note: str = "") -> None:
        """Count ``amount`` more units; ``note`` (a loss, a rate) stands behind the figures."""
        self.to(self.count + amount, note)

    def to(self, count: float, note: str = "") -> None:
        """Set the count itself."""
        self.count, self._note = count, note or self._note
        now = time.monotonic()
        if now - self._last >= (0.5 if self._bar else LINE_EVERY):
            self._last = now
            self._show()

    def _show(self, state: str = "") -> None:
        line = self._line(state)
        if self._bar is None:
            print(f"{self.label}: {line}", flush=True)
        else:
            self._bar.children[0].value = self.count
            self._bar.children[1].value = line

    def _line(self, state: str) -> str:
        seconds = time.monotonic() - self._start
        rate = (self.count - self._before) / seconds if seconds > 0 else 0.0
        parts = [f"{self.count:g}/{self.total:g} {self.unit}" if self.total else f"{self.count:g} {self.unit}"]
        parts.append(f"{rate:.3g} {self.unit}/s")
        if state:
            parts.append(f"{state} in {clock(seconds)}")
        elif self.total and rate > 0:
            parts.append(f"ETA {clock((self.total - self.count) / rate)}")
        return ", ".join([*parts, self._note] if self._note else parts)


def progress(items: Iterable[T], label: str, total: float | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate over ``items`` and show how far it is."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(total, label, unit) as shown:
        for item in items:
            yield item
            shown.update()


def clock(seconds: float) -> str:
    """Seconds as ``1:05`` or ``2:01:05``."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def live() -> bool:
    """Whether a person looks on through JupyterLab; the notebook runner sets ``$MUSIC_HEADLESS``."""
    return "ipykernel" in sys.modules and os.environ.get("MUSIC_HEADLESS") != "1"


def _widget(label: str, total: float | None):
    import ipywidgets
    from IPython.display import display

    bar = ipywidgets.FloatProgress(min=0, max=total or 1, description=label, style={"description_width": "initial"})
    box = ipywidgets.HBox([bar, ipywidgets.Label()])
    display(box)
    return box
