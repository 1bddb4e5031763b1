"""Callbacks: what happens beside the loop, in a defined order, with a state that checkpoints carry.

Callbacks run by their ``order``, small first, equal ones as they were given. Every process runs them; what writes or
prints asks ``trainer.is_main``. An own one is a subclass handed to the trainer, or registered under a name that a
configuration's caller can ask for: ``CallbackRegistry.register("mine", Mine)``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from .. import config
from ..errors import UserError
from ..live import View
from ..progress import Progress, live

if TYPE_CHECKING:
    from .loop import Trainer


class Callback:
    """The hooks, all empty. ``metrics`` hold plain numbers, except in :meth:`on_step_end`: tensors on the device."""

    order = 50
    name = ""  # the key of the state in a checkpoint; the class's name where empty

    def on_train_start(self, trainer: Trainer) -> None:
        """Before the first step; a resumed callback has its state back."""

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Before the first step of an epoch, also of one that is continued."""

    def on_gradients(self, trainer: Trainer) -> None:
        """After the backward pass, before the update: gradients are complete and unscaled."""

    def on_step_end(self, trainer: Trainer, step: int, metrics: dict[str, Any]) -> None:
        """After the update number ``step`` (from 1); ``metrics`` are this step's losses as tensors."""

    def on_log(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        """When a row was written to ``metrics.jsonl``."""

    def on_validation_end(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        """After a validation, before the checkpoint that follows it."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: dict[str, float]) -> None:
        """After an epoch; ``metrics`` are the latest of training and validation."""

    def on_checkpoint(self, trainer: Trainer, path: Any) -> None:
        """After a checkpoint was written to the folder ``path``."""

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last step, also of an interrupted training."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed callback needs: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""


class CallbackRegistry:
    """Own callbacks by name; those that a caller wants in every training of its process are :meth:`everywhere`."""

    _known: dict[str, type[Callback]] = {}
    _everywhere: list[str] = []

    @classmethod
    def register(cls, name: str, callback: type[Callback]) -> None:
        """Make a callback class known as ``name``; the last one wins."""
        cls._known[name] = callback

    @classmethod
    def create(cls, name: str, **options: Any) -> Callback:
        """Build the callback called ``name``; UserError for an unknown name."""
        if name not in cls._known:
            raise UserError(f"callback {name!r}: unknown{config.suggest(name, cls._known)}")
        return cls._known[name](**options)

    @classmethod
    def not_everywhere(cls, name: str) -> None:
        """Take back :meth:`everywhere` for a name."""
        cls._everywhere = [known for known in cls._everywhere if known != name]

    @classmethod
    def everywhere(cls, *names: str) -> list[Callback]:
        """Have every trainer of this process take a new callback of each of these names too; returns new ones of all so far."""
        cls._everywhere += [name for name in names if name not in cls._everywhere]
        return [cls.create(name) for name in cls._everywhere]


class GradientClipping(Callback):
    """Scales the gradients down to a norm of at most ``max_norm`` (none: only measures it, unless that is done already)."""

    order = 10

    def __init__(self, max_norm: float | None):
        self.max_norm = max_norm

    def on_gradients(self, trainer: Trainer) -> None:
        if trainer.gradient_norm is None:
            trainer.gradient_norm = trainer.measure_gradients()
        if self.max_norm:
            torch.nn.utils.clip_grads_with_norm_(trainer.trained, self.max_norm, trainer.gradient_norm)


class FeatureRedraw(Callback):
    """Has every module with a ``redraw_features(generator)`` draw its random features anew each ``interval`` steps.

    The draw depends on seed and step alone: all processes and all resumed runs draw the same.
    """

    order = 20

    def __init__(self, interval: int):
        self.interval = interval

    def on_step_end(self, trainer: Trainer, step: int, metrics: dict[str, Any]) -> None:
        if step % self.interval == 0:
            generator = torch.Generator().manual_seed(trainer.settings.random_seed * 1_000_003 + step)
            for module in trainer.model.modules():
                if hasattr(module, "redraw_features"):
                    module.redraw_features(generator)


class LRMonitor(Callback):
    """Keeps the history of the learning rate at logged steps; prints nothing."""

    order = 30

    def __init__(self):
        self.history: list[tuple[int, float]] = []

    def on_log(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        self.history.append((step, metrics["learning_rate"]))

    def state_dict(self) -> dict[str, Any]:
        return {"history": [list(item) for item in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [(step, rate) for step, rate in state["history"]]


class Best(Callback):
    """Knows the best validation so far; ``improved`` tells whether the latest one was it."""

    order = 35

    def __init__(self, metric: str, mode: str, min_delta: float = 0.0):
        self.metric, self.mode, self.min_delta = metric, mode, min_delta
        self.value: float | None = None
        self.improved = False

    def on_validation_end(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        if self.metric not in metrics:
            raise UserError(f"metric {self.metric!r} is not among the validation's{config.suggest(self.metric, metrics)}")
        value = metrics[self.metric]
        gain = math.inf if self.value is None else (self.value - value if self.mode == "min" else value - self.value)
        self.improved = math.isfinite(value) and gain > self.min_delta
        if self.improved:
            self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class EarlyStopping(Best):
    """Stops the training after ``patience`` validations in a row without an improvement, not before ``min_epochs``."""

    order = 40

    def __init__(self, patience: int, metric: str = "val_loss", min_delta: float = 0.0, mode: str = "min", min_epochs: int = 0):
        super().__init__(metric, mode, min_delta)
        self.patience, self.min_epochs, self.waited = patience, min_epochs, 0

    def on_validation_end(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        super().on_validation_end(trainer, step, metrics)
        self.waited = 0 if self.improved else self.waited + 1
        if self.waited >= self.patience and trainer.epochs_done >= self.min_epochs:
            trainer.stop(f"{self.metric} has not improved for {self.waited} validations (best {self.value:.4g})")

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.waited = state["value"], state["waited"]


class Profiling(Callback):
    """Traces some early steps with torch's profiler into ``logs/``, for TensorBoard or a trace viewer."""

    order = 80

    def __init__(self, wait: int = 5, active: int = 5):
        self.schedule = torch.profiler.schedule(wait=wait, warmup=1, active=active, repeat=1)
        self.profiler = None

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.is_main:
            handler = torch.profiler.tensorboard_trace_handler(str(trainer.run / "logs"))
            self.profiler = torch.profiler.profile(schedule=self.schedule, on_trace_ready=handler)
            self.profiler.start()

    def on_step_end(self, trainer: Trainer, step: int, metrics: dict[str, Any]) -> None:
        if self.profiler:
            self.profiler.step()

    def on_train_end(self, trainer: Trainer) -> None:
        if self.profiler:
            self.profiler.stop()
            self.profiler = None


class ShowProgress(Callback):
    """A bar and curves in JupyterLab, timed lines elsewhere, with the latest losses."""

    order = 90

    def __init__(self, label: str):
        self.label, self.shown, self.view = label, None, None
        self.note: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.is_main:
            self.shown = Progress(trainer.total_steps, self.label, "step", done=trainer.step)
            self.view = View(trainer.run, trainer.total_steps) if live() else None

    def on_log(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        self.note["loss"] = metrics["loss"]
        if self.view:
            self.view.look()

    def on_validation_end(self, trainer: Trainer, step: int, metrics: dict[str, float]) -> None:
        watched = trainer.settings.checkpoint.metric
        self.note[watched] = metrics.get(watched, math.nan)

    def on_step_end(self, trainer: Trainer, step: int, metrics: dict[str, Any]) -> None:
        if self.shown:
            self.shown.to(step, ", ".join(f"{name} {value:.4g}" for name, value in self.note.items()))

    def on_train_end(self, trainer: Trainer) -> None:
        if self.view:
            self.view.look()
            self.view.draw()
        if self.shown:
            self.shown.__exit__(None)
