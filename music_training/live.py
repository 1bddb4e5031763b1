"""A training as it runs: loss and gradient curves, throughput, time and money to go, GPU memory; a widget in JupyterLab.

Everything is read from the run's ``metrics.jsonl``, so any kernel can look at any run at any time: after a restart or a
lost connection, call ``live.watch("RUN")`` in any notebook and the whole curve is there again. (A page that is reloaded
while its own cell runs shows the widget again when the cell ends: until then the kernel answers nobody.) The same picture
is kept in ``logs/live.html`` of the run, which renews itself in any browser. Headless, there are the timed lines of
:mod:`music_training.progress`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from . import config, files, machine, prices, progress, runs

LOSSES = ("ce", "g_loss", "loss", "msspec", "l1")
GRADIENTS = ("grad_norm", "gradient_norm")
RATES = ("lr", "learning_rate")
EVERY = 1.0  # seconds between two drawings at most
PAGE_EVERY = 10.0  # seconds between two writings of logs/live.html
RECENT = 20  # rows that the throughput is taken over
POINTS = 200  # of a curve
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Standing:
    """Where a training stands: steps done and planned, steps a second, seconds since it began and to go (None: unknown)."""

    step: int
    steps: int
    rate: float | None
    spent: float | None
    left: float | None

    def text(self, price: prices.Price | None = None, memory: Sequence[tuple[int, int]] = ()) -> str:
        """One line; ``memory`` holds MiB used and there of every GPU."""
        parts = [f"step {self.step} of {self.steps} ({self.step / max(1, self.steps):.0%})"]
        if self.rate:
            parts.append(f"{self.rate:.3g} steps/s")
        if self.left is not None and self.step < self.steps:
            parts.append(f"{progress.clock(self.left)} to go")
        parts += money(self, price)
        parts += [f"GPU {used / 1024:.1f} of {total / 1024:.0f} GiB" for used, total in memory]
        return ", ".join(parts)


def money(standing: Standing, price: prices.Price | None) -> list[str]:
    """What the run has cost and will have cost, where both time and price are known and there is a price at all."""
    if not (price and price.hourly and standing.spent is not None):
        return []
    so_far = prices.text(price.of(standing.spent), price.currency)
    if standing.left is None:
        return [so_far]
    return [f"{so_far} of about {prices.text(price.of(standing.spent + standing.left), price.currency)}"]


def standing(rows: Rows, steps: int, seen: Sequence[tuple[float, int]] = ()) -> Standing:
    """Where the training that wrote ``rows`` stands; time is that of the rows themselves (their ``seconds``).

    Where rows carry no time it is the reader's: ``seen`` holds when (s) which step was seen, oldest first.
    """
    step = rows[-1]["step"] if rows else 0
    recent = rows[-RECENT - 1 :]
    if rows and rows[-1].get("seconds") is not None:
        gained, passed = step - recent[0]["step"], math.fsum(row.get("seconds") or 0.0 for row in recent[1:])
        spent = math.fsum(row.get("seconds") or 0.0 for row in rows)
    elif len(seen) > 1:
        gained, passed = seen[-1][1] - seen[0][1], seen[-1][0] - seen[0][0]
        spent = passed
    else:
        return Standing(step, steps, None, None, None)
    rate = gained / passed if passed > 0 and gained > 0 else None
    return Standing(step, steps, rate, spent, (steps - step) / rate if rate else None)


class View:
    """The rows of a run as they come and, in JupyterLab, their curves; :meth:`look` may be called as often as one likes.

    ``steps`` are those planned; ``price`` is what an hour costs (None: $MUSIC_PRICE_PER_HOUR, else this machine's GPUs).
    """

    def __init__(self, run: Path, steps: int, price: str | float | None = None):
        self.run, self.steps = run, steps
        self.price = prices.per_hour(os.environ.get("MUSIC_PRICE_PER_HOUR") if price is None else price)
        self.rows: list[dict[str, Any]] = []
        self._seen: list[tuple[float, int]] = []
        self._position, self._drawn, self._memory, self._asked = 0, -math.inf, [], -math.inf
        self._panel = _panel() if progress.live() else None
        self.look()

    def look(self) -> bool:
        """Read what is new and show it; whether there was anything."""
        new = self._read()
        if new:
            self._seen = [*self._seen[:1], (time.monotonic(), self.rows[-1]["step"])]
        if self._panel is not None and (new or not self.rows) and time.monotonic() - self._drawn >= EVERY:
            self.draw()
        return new

    def draw(self) -> None:
        """Draw the curves, where anyone looks on."""
        if self._panel is None:
            return
        self._drawn = time.monotonic()
        self._panel.value = self.html()

    def html(self) -> str:
        """The curves as they are now."""
        if time.monotonic() - self._asked >= 10:
            self._memory, self._asked = machine.gpu_memory(), time.monotonic()
        return html(self.rows, self.standing(), self.price, self._memory, self.run.name)

    def standing(self) -> Standing:
        """Where the training stands."""
        return standing(self.rows, self.steps, self._seen)

    def _read(self) -> bool:
        """Take in the new rows; a run that went back to a checkpoint has dropped some, and is read again."""
        try:
            new, position = runs.new_rows(self.run, self._position)
        except json.JSONDecodeError:  # the file shrank and grew again: the position is within a row
            new, position = None, 0
        if new is None or position < self._position or (new and self.rows and new[0]["step"] < self.rows[-1]["step"]):
            self.rows = []
            new, position = runs.new_rows(self.run, 0)
        self.rows += new
        self._position = position
        return bool(new)


class Live:
    """A run while it trains, for the one who waits for it: a :class:`View` with a bar, or timed lines, and the page.

    A context manager.
    """

    def __init__(self, run: Path, steps: int, price: str | float | None = None):
        self.view = View(run, steps, price)
        rows = self.view.rows
        self._progress = progress.Progress(steps, run.name, "steps", done=rows[-1]["step"] if rows else 0)
        self._written = -math.inf

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind, *rest: object) -> None:
        self.look()
        self.view.draw()
        self._write(ended=True)
        self._progress.__exit__(kind, *rest)

    def look(self) -> None:
        """Read what is new and show it."""
        if self.view.look():
            last = self.view.rows[-1]
            loss = [f"{name} {last[name]:.3f}" for name in LOSSES if last.get(name) is not None][:1]
            costs = [] if progress.live() else money(self.view.standing(), self.view.price)  # a widget's label reads $ as mathematics
            self._progress.to(last["step"], ", ".join([*loss, *costs]))
            if time.monotonic() - self._written >= PAGE_EVERY:
                self._write()

    def _write(self, ended: bool = False) -> None:
        self._written = time.monotonic()
        again = "" if ended else f'<meta http-equiv="refresh" content="{PAGE_EVERY:g}">'
        head = f'<!doctype html><html lang="en"><meta charset="utf-8">{again}<title>{escape(self.view.run.name)}</title>'
        with contextlib.suppress(OSError):  # a full disk is the training's business
            files.write_text(page_of(self.view.run), f'{head}<body style="font-family:system-ui">{self.view.html()}</body></html>\n')


def page_of(run: Path) -> Path:
    """The page of a run that renews itself while the run trains."""
    return run / "logs" / "live.html"


def watch(run: str | Path, steps: int | None = None, price: str | float | None = None) -> None:
    """Show a run by its name until it is no longer running; at once what there is of one that has ended."""
    folder = runs.find(run)
    with Live(folder, planned_steps(folder) if steps is None else steps, price) as shown:
        while runs.read_metadata(folder).get("status") in ("created", "running"):
            shown.look()
            time.sleep(0.5)


def planned_steps(run: Path) -> int:
    """The steps that a run's configuration plans; those of its last row where it does not say."""
    path = run / "config.yaml"
    settings = config.read_yaml(path) if path.is_file() else {}
    optim, training = settings.get("optim") or {}, settings.get("training") or settings
    if optim.get("epochs") and optim.get("updates_per_epoch"):
        return int(optim["epochs"] * optim["updates_per_epoch"])
    rows = runs.read_metrics(run)
    return int(training.get("max_steps") or (rows[-1]["step"] if rows else 1))


def html(rows: Rows, now: Standing, price: prices.Price | None = None, memory: Sequence[tuple[int, int]] = (), title: str = "") -> str:
    """The curves and the line below them, as HTML that needs nothing else."""
    names = [name for name in LOSSES if _has(rows, name)][:2]
    names += [name for name in dict.fromkeys(name for row in rows for name in row) if name.startswith("val_") and _has(rows, name)][:1]
    names += [name for group in (GRADIENTS, RATES) for name in group if _has(rows, name)][:2]
    pictures = "".join(curve(rows, name) for name in names) or "<i>no rows of metrics yet</i>"
    text = escape(now.text(price, memory))
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{pictures}</div><div><b>{escape(title)}</b> {text}</div>'


def curve(rows: Rows, name: str, width: int = 300, height: int = 150) -> str:
    """One metric over steps as SVG: a line in training (means of neighbouring rows), points in validation."""
    series = {stage: _points(rows, name, stage) for stage in ("train", "valid")}
    everything = [point for points in series.values() for point in points]
    lowest, highest = min(y for _, y in everything), max(y for _, y in everything)
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    left, top, right, bottom = 44, 20, width - 8, height - 18

    def place(point: tuple[float, float]) -> str:
        x = left + (right - left) * ((point[0] - first) / (last - first) if last > first else 0.5)
        y = bottom - (bottom - top) * ((point[1] - lowest) / (highest - lowest) if highest > lowest else 0.5)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(map(place, series["train"]))
    dots = "".join('<circle cx="{}" cy="{}" r="3" fill="#c67"/>'.format(*place(point).split(",")) for point in series["valid"])
    newest = [row for row in rows if row.get(name) is not None]
    newest = [row for row in newest if row.get("stage") != "valid"] or newest
    at, latest = newest[-1]["step"], newest[-1][name]
    texts = [(left - 4, top + 4, "end", f"{highest:.3g}"), (left - 4, bottom, "end", f"{lowest:.3g}"), (left, 12, "start", name)]
    texts += [(left, height - 4, "start", f"{first:g}"), (right, height - 4, "end", f"{last:g}"), (right, 12, "end", f"{latest:.4g}")]
    words = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>' for x, y, anchor, text in texts)
    label = escape(f"{name}: {latest:.4g} at step {at:g}; between {lowest:.4g} and {highest:.4g}")
    return (
        f'<svg role="img" aria-label="{label}" width="{width}" height="{height}" font-size="11" fill="currentColor">'
        f'<path d="M{left},{top}V{bottom}H{right}" fill="none" stroke="currentColor" opacity=".4"/>'
        f'<polyline points="{line}" fill="none" stroke="#47a" stroke-width="1.5"/>{dots}{words}</svg>'
    )


def _has(rows: Rows, name: str) -> bool:
    return any(row.get(name) is not None for row in rows)


def _points(rows: Rows, name: str, stage: str) -> list[tuple[float, float]]:
    """Steps and values of a metric, at most POINTS of them: means of as many neighbours as need be."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None and (row.get("stage") == "valid") == (stage == "valid")]
    size = math.ceil(len(points) / POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [tuple(math.fsum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]


def _panel():
    import ipywidgets
    from IPython.display import display

    panel = ipywidgets.HTML()
    display(panel)
    return panel
