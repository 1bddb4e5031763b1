"""The loop: updates, validations, logging and checkpoints of one :class:`~music_training.trainer.system.System`.

All randomness of an update follows from (seed, step, process), and that of an example from (seed, epoch, index).
Nothing about chance has to be saved, and a run that was killed anywhere goes on to the very same weights.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate.utils import send_to_device

from .. import heartbeat, runs, signals
from ..errors import Interrupted
from . import callbacks as hooks
from . import checkpoints, optimizers
from .averaging import Averaged
from .config import Training
from .processes import accelerator, same_everywhere
from .system import Batches, System
from .trackers import Trackers


@dataclass(frozen=True)
class Outcome:
    """How a training ended: where, after how many updates, the best value of the watched metric, the last metrics, and why."""

    run: Path
    step: int
    best: float | None
    metrics: dict[str, float]
    reason: str


class Trainer:
    """Trains ``system`` into the run folder ``run``; ``callbacks`` come beside those that the settings ask for."""

    def __init__(self, system: System, settings: Training, run: Path, callbacks: Iterable[hooks.Callback] = (), label: str = "training"):
        self.system, self.settings, self.run = system, settings, Path(run)
        self.folder = Path(settings.checkpoint.save_dir).expanduser() if settings.checkpoint.save_dir else self.run / runs.CHECKPOINTS
        self.accelerator = accelerator(settings)
        self.process, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.model = system.model
        self._wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizers.build(self.model, settings.optimizer))
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.averaged = Averaged(self.model, settings.ema) if settings.ema else None
        self.batches = Batches(system, settings, self.process, self.processes, pin=self.device.type == "cuda")
        self.best = hooks.Best(settings.checkpoint.metric, settings.checkpoint.mode)
        own = [*callbacks]
        own += [item for item in hooks.CallbackRegistry.everywhere() if type(item) not in map(type, own)]
        self.callbacks = sorted([*_asked_for(settings, label), self.best, *own], key=lambda item: item.order)

        self.step = self.epoch = self.position = 0  # updates done; epochs done; batches of this epoch's plan done
        self.reason = ""  # why the training ended
        self.gradient_norm: torch.Tensor | None = None  # of the update in hand, as soon as a callback has measured it
        self.metrics: dict[str, float] = {}  # the latest logged ones, training and validation
        self.losses: dict[str, torch.Tensor] = {}  # those of the update in hand
        self._sums: dict[str, torch.Tensor] = {}  # losses since the last logged row
        self._summed = self._validated = 0
        self._new_best = self._asked_to_stop = False

    # What callbacks and systems may ask

    @property
    def epochs_done(self) -> int:
        """Whole epochs that are done, this one included once its last batch is."""
        return self.epoch + (self.position >= len(self._plan))

    @property
    def total_steps(self) -> int:
        """Updates of the whole training, as far as the present epoch's plan tells."""
        size = self.processes * self.settings.gradient_accumulation_steps
        steps = self.settings.epochs * -(-len(self._plan) // size)
        return min(steps, self.settings.max_steps or steps)

    def stop(self, reason: str) -> None:
        """End the training after this update; all processes must ask for it at the same one."""
        self.reason = reason

    def share(self, items: list[Any]) -> list[Any]:
        """This process's part of ``items``."""
        return items[self.process :: self.processes]

    def gather(self, items: list[Any]) -> list[Any]:
        """The inverse of :meth:`share`: all processes' items in their original order, on every process."""
        if self.processes == 1:
            return items
        parts: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(parts, items)
        return [parts[place % self.processes][place // self.processes] for place in range(sum(map(len, parts)))]

    def measure_gradients(self) -> torch.Tensor:
        """The norm of all gradients of the update in hand."""
        return torch.nn.utils.get_total_norm([parameter.grad for parameter in self.trained if parameter.grad is not None])

    def examples(self) -> list[str]:
        """What the examples of the update in hand are called, in all processes."""
        used = self.processes * self.settings.gradient_accumulation_steps
        return [self.system.name(index) for batch in self._plan[self.position : self.position + used] for index in batch]

    # The loop

    def fit(self, resume: bool = False) -> Outcome:
        """Train to the end, or with ``resume`` on from the run's newest checkpoint, and return how it went.

        On SIGTERM the update in progress is finished, a checkpoint written and :class:`Interrupted` raised (exit code 75);
        after the last update the training comes to its end instead.
        """
        checkpoint = checkpoints.newest(self.folder) if resume else None
        self._plan = self.batches.plan(0)
        if checkpoint:
            self._load(checkpoint)
        if self.reason:  # all is done; a kill may have come before that was noted
            if self.is_main and runs.read_metadata(self.run).get("status") != "finished":
                self._note("finished")
                heartbeat.Heartbeat(self.run).end()
            return self._outcome()
        status = "interrupted"
        with contextlib.ExitStack() as stack:
            stack.enter_context(signals.handled(self._ask_to_stop, signal.SIGTERM))
            self._rows = stack.enter_context(Trackers(self.run, self.settings.logging, self.step, self.is_main))
            self._call("on_train_start")
            stack.callback(self._call, "on_train_end")
            self._note("running")
            self._heart = heartbeat.Heartbeat(self.run)
            try:
                while not self.reason:
                    self._run_epoch()
                status = "finished"
                if self.is_main:
                    self._heart.end()
            finally:
                self._note(status)
        self.model = self.system.model = self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        return self._outcome()

    def _run_epoch(self) -> None:
        settings = self.settings
        self._plan = self.batches.plan(self.epoch)
        self._call("on_epoch_start", self.epoch)
        self._wrapped.train()
        self._clock, self._counted = time.monotonic(), 0
        for used, batches in self.batches.updates(self.epoch, self.position):
            losses = self._update(batches)
            self.step += 1
            self._counted += sum(len(batch) for batch in self._plan[self.position : self.position + used])
            self.position += used
            if self.is_main:
                self._heart.beat(self.step)
            self._call("on_step_end", self.step, losses)
            if self.step % settings.logging.interval == 0:
                self._log()
            if settings.validation.interval and self.step % settings.validation.interval == 0:
                self._validate()
            if settings.max_steps and self.step >= settings.max_steps:
                self.reason = self.reason or f"{self.step} steps are done"
            due = settings.checkpoint.interval and self.step % settings.checkpoint.interval == 0
            if (due or self._new_best) and not self.reason:
                self._save()
            if not self.reason and same_everywhere(self._asked_to_stop):
                self._save()
                raise Interrupted(f"stopped by SIGTERM after step {self.step}; resume {self.run.name} to go on")
            if self.reason:
                break
        self._end_epoch()

    def _end_epoch(self) -> None:
        whole = self.position >= len(self._plan)
        if whole and self.epoch + 1 >= self.settings.epochs:
            self.reason = self.reason or f"{self.epoch + 1} epochs are done"
        if self.reason and self._summed:
            self._log()
        validation = self.settings.validation
        if self.reason or (validation.interval is None and (self.epoch + 1) % validation.epochs == 0):
            self._validate()
        if whole:
            self.epoch, self.position = self.epoch + 1, 0
            self._call("on_epoch_end", self.epoch - 1, self.metrics)
        if self.settings.checkpoint.interval is None or self._new_best or self.reason:
            self._save()

    def _update(self, batches: list[tuple[Any, float]]) -> dict[str, torch.Tensor]:
        """One update from this process's batches; returns their losses, weighted as in the gradient."""
        self._seed()
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        losses: dict[str, torch.Tensor] = {}
        for number, (batch, weight) in enumerate(batches, start=1):
            last = number == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._wrapped):
                parts = self.system.loss(self._wrapped, send_to_device(batch, self.device, non_blocking=True))
                self.accelerator.backward(parts["loss"] * weight)
            for name, value in parts.items():
                losses[name] = losses.get(name, 0.0) + value.detach() * weight
        if self.settings.distributed.sync_gradient_barrier:
            self.accelerator.wait_for_everyone()
        self.accelerator.unscale_gradients()
        self.losses, self.gradient_norm = losses, None
        self._call("on_gradients")
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.averaged:
            self.averaged.update(self.step)
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._summed += 1
        return losses

    def _rate(self) -> float:
        size = self.processes * self.settings.gradient_accumulation_steps
        step = (self.epoch * len(self._plan) + self.position) / size
        total = self.settings.epochs * len(self._plan) / size
        if self.settings.max_steps and self.settings.max_steps < total:
            step, total = self.step, self.settings.max_steps
        return optimizers.learning_rate(self.settings.scheduler, self.settings.optimizer.lr, step, total)

    def _seed(self) -> None:
        seed = ((self.settings.random_seed * 1_000_003 + self.step) * 4099 + self.process) % 2**32
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace for every device that is not there
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)
        numpy.random.seed(seed)
        random.seed(seed)

    def _log(self) -> None:
        self._join_sums()
        row = {name: float(value) / self._summed for name, value in self._sums.items()}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if self.gradient_norm is not None:
            row["gradient_norm"] = float(self.gradient_norm)
        seconds = time.monotonic() - self._clock
        row["examples_per_second"] = self._counted / seconds if seconds > 0 else 0.0
        self._clock, self._counted = time.monotonic(), 0
        self._sums, self._summed = {}, 0
        self.metrics.update(row)
        self._rows.write("train", self.step, self.epoch, row)
        self._call("on_log", self.step, row)

    def _validate(self) -> None:
        if self._validated == self.step:
            return
        began = time.monotonic()
        self._wrapped.eval()
        with torch.no_grad(), self.averaged.applied() if self.averaged else contextlib.nullcontext():
            metrics = same_everywhere(self.system.validate(self))
        self._wrapped.train()
        self._validated = self.step
        if metrics:
            self.metrics.update(metrics)
            self._rows.write("val", self.step, self.epoch, metrics)
            self._call("on_validation_end", self.step, metrics)
            self._new_best = self.best.improved
        self._clock += time.monotonic() - began  # validation does not count for the examples per second

    # Checkpoints

    def _save(self) -> None:
        self._join_sums()
        if self.is_main:
            state = {
                "progress": {name: getattr(self, name) for name in ("step", "epoch", "position", "reason", "_summed", "_validated")},
                "best": self._new_best,
                "sums": {name: float(value) for name, value in self._sums.items()},
                "metrics": dict(self.metrics),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
                "callbacks": {name: callback.state_dict() for name, callback in self._named_callbacks()},
            }
            about = {"epoch": self.epoch, "metrics": {name: value for name, value in self.metrics.items() if value == value}}
            averaged = self.averaged.state_dict() if self.averaged else None
            self._rows.flush()
            path = checkpoints.save(self.folder, self.step, self.model, averaged, state, about)
            self._link(path, self._new_best)
            checkpoints.prune(self.folder, self.settings.checkpoint.save_total_limit)
        self._new_best = False
        self.accelerator.wait_for_everyone()
        self._call("on_checkpoint", self.folder / "last")

    @staticmethod
    def _link(path: Path, best: bool) -> None:
        checkpoints.link(path, "last")
        if best:
            checkpoints.link(path, "best", without=[checkpoints.STATE])

    def _load(self, checkpoint: Path) -> None:
        state = checkpoints.load_state(checkpoint)
        if self.is_main and checkpoint.name.startswith("step_"):
            self._link(checkpoint, state.get("best", False))  # a kill may have come before these
        checkpoints.load_weights(self.model, checkpoint)
        if self.averaged:
            self.averaged.load_state_dict(checkpoints.read_weights(checkpoint, averaged=True))
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self._sums = {name: torch.tensor(value, device=self.device) for name, value in state["sums"].items()}
        self.metrics = dict(state["metrics"])
        for name, callback in self._named_callbacks():
            if name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][name])
        self._plan = self.batches.plan(self.epoch)

    def _join_sums(self) -> None:
        """Make the sums of losses the mean over the processes, on every process."""
        if self.processes > 1:
            for name, value in self._sums.items():
                self._sums[name] = self.accelerator.reduce(value, reduction="mean")

    def _named_callbacks(self) -> list[tuple[str, hooks.Callback]]:
        return [(callback.name or type(callback).__name__, callback) for callback in self.callbacks]

    # Small things

    def _call(self, hook: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *values)

    def _note(self, status: str) -> None:
        if self.is_main:
            best = {self.best.metric: self.best.value} if self.best.value is not None else {}
            runs.write_metadata(self.run, status=status, step=self.step, epoch=self.epoch, reason=self.reason, best=best)

    def _outcome(self) -> Outcome:
        return Outcome(self.run, self.step, self.best.value, dict(self.metrics), self.reason)

    def _ask_to_stop(self, _: int) -> None:
        self._asked_to_stop = True


def _asked_for(settings: Training, label: str) -> list[hooks.Callback]:
    """The callbacks that the settings ask for."""
    found: list[hooks.Callback] = [hooks.GradientClipping(settings.gradient_clipping), hooks.LRMonitor(), hooks.ShowProgress(label)]
    if settings.feature_redraw_interval and not settings.fixed_projection:
        found.append(hooks.FeatureRedraw(settings.feature_redraw_interval))
    if settings.early_stopping:
        found.append(hooks.EarlyStopping(**settings.early_stopping.model_dump()))
    if settings.profiling:
        found.append(hooks.Profiling())
    return found
