"""Watches a training's losses and gradients before each update, and says what to do: step, clip, skip, rewind or stop.

    monitor = StabilityMonitor(StabilityConfig(max_nan_ratio_per_epoch=0.1), log=run / "logs" / "stability.jsonl")
    decision = monitor.look(step, {"loss": 2.3}, gradient=0.8)

It knows no framework: numbers go in, a :class:`Decision` comes out; ``stability_hooks`` ties it to the solvers and the
trainer. ``python training_checks/stability_monitor.py RUN`` tells what it saw in a run.

The ladder: a bad step is skipped; where they come often, gradients are clipped to what is usual; then the learning rate
is halved (and recovers over clean steps); then the weights go back to the last good checkpoint while the data goes on;
at last the training is stopped with a report. What is usual is the median of the accepted steps: a NaN never enters it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import runs
from music_training.config import Settings
from music_training.errors import UserError, run_command
from music_training.guard import Decision
from training_checks.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = Path("logs") / "stability.jsonl"
RUNGS = ("skip", "clip", "learning rate", "rewind", "stop")


class StabilityConfig(Settings):
    """What counts as bad, and how much of it is borne.

    A share of steps with a loss that is not a number above ``max_nan_ratio_per_epoch`` stops the training; one of
    gradients that are not finite (fp16 overflows included) above ``max_inf_grad_ratio_per_epoch`` is a warning. A value
    is a spike where it lies ``spike_sigmas`` robust deviations above the median of the last ``window`` accepted ones
    and is at least ``loss_ratio`` or ``gradient_ratio`` times that. ``skips`` bad steps within ``memory`` steps are
    borne on a rung of the ladder before the next one; ``poisoned_after`` in a row go straight to the rewind.
    """

    max_nan_ratio_per_epoch: float = Field(0.1, ge=0, le=1)
    max_inf_grad_ratio_per_epoch: float = Field(0.3, ge=0, le=1)
    enable_adaptive_lr: bool = True
    window: int = Field(128, ge=8)
    min_history: int = Field(16, ge=4)
    spike_sigmas: float = Field(6.0, gt=0)
    loss_ratio: float = Field(1.5, gt=1)
    gradient_ratio: float = Field(4.0, gt=1)
    skips: int = Field(3, ge=0)
    memory: int = Field(200, ge=1)
    poisoned_after: int = Field(8, ge=1)
    lr_factor: float = Field(0.5, gt=0, lt=1)
    halvings: int = Field(2, ge=1)
    recovery_steps: int = Field(200, ge=1)
    max_rewinds: int = Field(3, ge=0)
    allowed_nans: int = Field(3, ge=0)  # of an epoch, however short it is


class Usual:
    """The last accepted values of one figure. Median and spread cost no sorting: the window is kept in order."""

    def __init__(self, length: int):
        self.length = length
        self.recent: deque[float] = deque()
        self._ordered: list[float] = []

    def add(self, value: float) -> None:
        """Take in a finite value; the oldest one leaves a full window."""
        if len(self.recent) == self.length:
            del self._ordered[bisect_left(self._ordered, self.recent.popleft())]
        self.recent.append(value)
        insort(self._ordered, value)

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of the window lies."""
        return self._ordered[min(len(self._ordered) - 1, int(share * len(self._ordered)))]

    @property
    def spread(self) -> float:
        """A robust standard deviation, from the lower half alone: up to half of the window may be outliers above it."""
        return (self.quantile(0.5) - self.quantile(0.25)) / 0.6745

    def excess(self, value: float, sigmas: float, least: float) -> bool:
        """Whether ``value`` lies more than ``sigmas`` spreads, and more than ``least``, above the median."""
        return value - self.quantile(0.5) > max(sigmas * self.spread, least)


class StabilityMonitor:
    """The ladder over one training. All processes of a training must be shown the same numbers.

    ``log`` is a file of JSON lines, one for each bad step and each epoch; None keeps ``events`` in memory only.
    """

    def __init__(self, config: StabilityConfig | None = None, log: Path | None = None):
        self.config, self.log = config or StabilityConfig(), log
        self.events: list[dict[str, Any]] = []
        self.rung, self.lr_scale, self.rewinds, self.halvings = 0, 1.0, 0, 0
        self.epoch, self.epoch_steps = 0, 0
        self.counts: dict[str, int] = {}
        self._usual: dict[str, Usual] = {}
        self._strikes: list[int] = []
        self._in_a_row: dict[str, int] = {}
        self._warned = False
        # The step that is looked at, the count of steps looked at (a rewind does not turn it back), and whether nothing
        # of this one was accepted yet.
        self._step, self._looked, self._fresh = -1, 0, False

    def start_epoch(self, epoch: int, steps: int = 0) -> None:
        """Begin an epoch of ``steps`` updates: its budgets are full again."""
        self.epoch, self.epoch_steps, self.counts, self._warned = epoch, steps, {}, False

    def end_epoch(self) -> dict[str, int]:
        """Log and return what the epoch counted; one without a bad step gives the rewinds back."""
        if not any(count for name, count in self.counts.items() if name not in ("steps", "overflow")):
            self.rewinds = 0
        self._write({"kind": "epoch", "epoch": self.epoch, **self.counts, "lr_scale": self.lr_scale})
        return dict(self.counts)

    def forget(self, part: str = "") -> None:
        """Forget what is usual (for a part, or all): the training is about to change on purpose, by a new loss say."""
        self._usual = {name: known for name, known in self._usual.items() if part and not name.startswith(f"{part}/")}

    def look(
        self,
        step: int,
        losses: Mapping[str, float],
        gradient: float | None = None,
        *,
        part: str = "model",
        drifting: tuple[str, ...] = (),
        overflow: bool = False,
        bad_parameter: Callable[[], str] = str,
        files: Callable[[], list[str]] = list,
        weights_finite: Callable[[], bool] = lambda: True,
    ) -> Decision:
        """Judge a step before its update, from its losses and the norm of its gradients.

        ``part`` keeps the figures of a generator and of its discriminator apart. ``drifting`` are the beginnings of the
        names of losses whose rise is no fault: of them only NaN and infinity are. ``overflow``: the gradients are those
        of a scaled fp16 loss, whose overflow is no fault (the scaler skips the step by itself). The last three are
        asked only about a bad step: the first parameter whose gradient is not finite, the batch's files, and whether
        the weights themselves still are.
        """
        if step != self._step:
            self._step, self._looked, self._fresh = step, self._looked + 1, True
            self.counts["steps"] = self.counts.get("steps", 0) + 1
        kind, name, value, usual = self._fault(part, losses, gradient, drifting)
        if not kind:
            return self._accept(part, losses, gradient)
        if kind.endswith("gradient") and overflow and self._in_a_row.get(part, 0) < 20:
            self.counts["overflow"] = self.counts.get("overflow", 0) + 1
            self._warn(step, part)
            return Decision("skip", None, self.lr_scale, "fp16 overflow")
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._in_a_row[part] = self._in_a_row.get(part, 0) + 1
        finite = kind.endswith("spike")
        poisoned = not finite and not weights_finite()
        action = self._climb(kind, part, poisoned)
        where = name if finite or kind.endswith("loss") else bad_parameter() or name
        paths = files()
        cause = f"{kind.replace('_', ' ')} of {where}" if kind.endswith("spike") else f"{kind.replace('_', ' ')} in {where}"
        cause += f" ({value:.4g}, usually {usual:.4g})" if finite else " (the weights are not finite any more)" if poisoned else ""
        max_norm = None
        if action == "clip":
            max_norm = self._bound(part)
            action = "skip" if not finite or max_norm is None else "clip"
        event = {"step": step, "epoch": self.epoch, "kind": kind, "part": part, "name": where, "value": value, "usual": usual}
        self._write(
            {
                **event,
                "action": action,
                "rung": RUNGS[self.rung],
                "lr_scale": self.lr_scale,
                "max_norm": max_norm,
                "cause": cause,
                "files": paths,
            }
        )
        self._warn(step, part)
        return Decision(action, max_norm, self.lr_scale, f"step {step}: {cause}" + (f"; files: {', '.join(paths[:4])}" if paths else ""))

    # What is bad

    def _fault(
        self, part: str, losses: Mapping[str, float], gradient: float | None, drifting: tuple[str, ...]
    ) -> tuple[str, str, float, float]:
        for name, value in losses.items():
            if not math.isfinite(value):
                return ("nan_loss" if math.isnan(value) else "inf_loss"), name, value, math.nan
        if gradient is not None and not math.isfinite(gradient):
            return ("nan_gradient" if math.isnan(gradient) else "inf_gradient"), "the gradients", gradient, math.nan
        config = self.config
        for name, value in losses.items():
            known = self._usual.get(f"{part}/{name}")
            if known and len(known.recent) >= config.min_history and not name.startswith(drifting):
                middle = known.quantile(0.5)
                if known.excess(value, config.spike_sigmas, (config.loss_ratio - 1) * abs(middle)):
                    return "loss_spike", name, value, middle
        known = self._usual.get(f"{part}/gradient")
        if (
            gradient
            and known
            and len(known.recent) >= config.min_history
            and known.excess(math.log(gradient), config.spike_sigmas, math.log(config.gradient_ratio))
        ):
            return "gradient_spike", "the gradients", gradient, math.exp(known.quantile(0.5))
        return "", "", 0.0, 0.0

    def _bound(self, part: str) -> float | None:
        known = self._usual.get(f"{part}/gradient")
        return math.exp(known.quantile(0.5) + 0.6745 * known.spread) if known and known.recent else None

    # What is done

    def _accept(self, part: str, losses: Mapping[str, float], gradient: float | None) -> Decision:
        for name, value in losses.items():
            self._take(f"{part}/{name}", value)
        if gradient:
            self._take(f"{part}/gradient", math.log(gradient))
        self._in_a_row[part] = 0
        if self.lr_scale < 1 and self._fresh:
            self.lr_scale = min(1.0, self.lr_scale * self.config.lr_factor ** (-1 / self.config.recovery_steps))
        self._fresh = False
        if self._strikes and self._looked - self._strikes[-1] > self.config.memory:
            self.rung, self.halvings, self._strikes = 0, 0, []
        if self.rung >= 1 and (bound := self._bound(part)) and gradient and gradient > bound:
            return Decision("clip", bound, self.lr_scale)
        return Decision("step", None, self.lr_scale)

    def _take(self, name: str, value: float) -> None:
        if name not in self._usual:
            self._usual[name] = Usual(self.config.window)
        self._usual[name].add(value)

    def _climb(self, kind: str, part: str, poisoned: bool) -> str:
        """Note a bad step and return what the rung that it leads to does."""
        config, now = self.config, self._looked
        self._strikes = [earlier for earlier in self._strikes if now - earlier <= config.memory] + [now]
        nans = self.counts.get("nan_loss", 0) + self.counts.get("inf_loss", 0)
        if kind in ("nan_loss", "inf_loss") and nans > max(config.allowed_nans, config.max_nan_ratio_per_epoch * self.epoch_steps):
            self.rung = 4
            return "stop"
        if poisoned or self._in_a_row[part] >= config.poisoned_after:
            self.rung = 3
        elif len(self._strikes) > config.skips:
            self._strikes = [now]
            if self.rung == 2 and self.halvings < config.halvings:
                self._halve()
            else:
                self.rung += 1
                if self.rung == 2:
                    if config.enable_adaptive_lr:
                        self._halve()
                    else:
                        self.rung = 3
        if self.rung < 3:
            return "skip" if self.rung == 0 else "clip"
        if self.rewinds >= config.max_rewinds:
            self.rung = 4
            return "stop"
        self.rewinds += 1
        self.rung, self._in_a_row, self._strikes, self._step = 1, {}, [now], -1
        if config.enable_adaptive_lr:
            self._halve()
        return "rewind"

    def _halve(self) -> None:
        self.halvings += 1
        self.lr_scale *= self.config.lr_factor

    def _warn(self, step: int, part: str) -> None:
        bad = sum(self.counts.get(kind, 0) for kind in ("overflow", "inf_gradient", "nan_gradient"))
        seen = max(self.epoch_steps, self.counts["steps"], 10)
        if not self._warned and bad > self.config.max_inf_grad_ratio_per_epoch * seen:
            self._warned = True
            cause = f"{bad} of {seen} steps of epoch {self.epoch} had gradients that are not finite"
            self._write({"step": step, "epoch": self.epoch, "kind": "budget", "part": part, "action": "warn", "cause": cause})

    # State and log

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, in plain values."""
        names = ("rung", "lr_scale", "rewinds", "halvings", "epoch", "epoch_steps", "_warned", "_step", "_looked")
        values = {name: getattr(self, name) for name in names}
        usual = {name: list(known.recent) for name, known in self._usual.items()}
        lists = {"counts": dict(self.counts), "_strikes": list(self._strikes), "_in_a_row": dict(self._in_a_row)}
        return {**values, **lists, "usual": usual}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for name, value in state.items():
            if name != "usual":
                setattr(self, name, type(value)(value))
        self._usual = {}
        for name, values in state["usual"].items():
            for value in values:
                self._take(name, value)

    def _write(self, event: dict[str, Any]) -> None:
        event = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in event.items()}
        self.events.append(event)
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(event, ensure_ascii=False) + "\n")


def read_log(run: Path) -> list[dict[str, Any]]:
    """The events of a run; empty where nothing was logged."""
    path = run / LOG
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def check(run: Path | str) -> Report:
    """What the monitor saw in a run: one finding for each kind of fault, with the first step, its cause and its files."""
    run = runs.find(run)
    if not (run / LOG).is_file():
        raise UserError(f"{run.name}: no {LOG}; the run was trained without the monitor, or has not ended an epoch yet")
    events = read_log(run)
    report = Report(f"stability of {run.name}")
    report.rows = [event for event in events if event["kind"] != "epoch"]
    epochs = [event for event in events if event["kind"] == "epoch"]
    report.figures = {"epochs": len(epochs), "steps": sum(event.get("steps", 0) for event in epochs)}
    for kind in dict.fromkeys(event["kind"] for event in report.rows):
        same = [event for event in report.rows if event["kind"] == kind]
        report.figures[kind] = len(same)
        stopped = next((event for event in same if event["action"] == "stop"), None)
        first = stopped or same[0]
        done = ", ".join(
            f"{sum(event['action'] == action for event in same)} x {action}" for action in dict.fromkeys(e["action"] for e in same)
        )
        paths = first.get("files") or []
        message = f"{len(same)} times ({done}); {'stopped' if stopped else 'first'} at step {first['step']}: {first['cause']}"
        todo = _todo(kind) + (f"; look at {', '.join(paths[:3])}" if paths else "")
        report.add("fault" if stopped else "warning", kind.replace("_", " "), message, todo)
    if not report.rows:
        report.add("ok", "stability", f"no bad step in {report.figures['steps']}")
    return report


def _todo(kind: str) -> str:
    if kind in ("nan_loss", "inf_loss"):
        return "check the audio of the batch for NaN (preflight.py), then the learning rate"
    if kind.endswith("spike"):
        return "lower the learning rate or lengthen its warm-up if it comes back"
    return "train in bf16 or float32; lower the learning rate"


def plot(run: Path | str) -> Figure:
    """A run's loss with the bad steps on it, and the factor on the learning rate below."""
    from matplotlib import pyplot

    run = runs.find(run)
    rows = [row for row in runs.read_metrics(run) if row.get("stage", "train") == "train"]
    name = next((key for key in ("ce", "g_loss", "loss", "train_loss") if any(row.get(key) is not None for row in rows)), None)
    events = [event for event in read_log(run) if "step" in event]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 4), height_ratios=(3, 1), sharex=True, layout="constrained")
    if name:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        above.plot(*zip(*points, strict=True), color="#4477aa", lw=1)
        above.set_ylabel(name)
    colours = {"skip": "#ccaa00", "clip": "#228833", "rewind": "#aa3377", "stop": "#cc0000", "warn": "#888888"}
    for action, colour in colours.items():
        for number, step in enumerate(event["step"] for event in events if event["action"] == action):
            above.axvline(step, color=colour, lw=1, alpha=0.7, label=None if number else action)
    if events:
        above.legend(fontsize=8)
    below.step([event["step"] for event in events], [event.get("lr_scale", 1.0) for event in events], where="post", color="#ee6677")
    below.set(ylim=(0, 1.1), xlabel="step", ylabel="factor on\nthe rate")
    above.set_title(f"{run.name}: {len(events)} bad steps")
    pyplot.close(figure)  # the caller shows it, once
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run's name or folder")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the loss with the bad steps")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = check(args.run)
    if args.plot:
        plot(args.run).savefig(args.plot, dpi=110)
    return report.print(args.json)


if __name__ == "__main__":
    run_command(main)
