"""Ties the stability monitor to the trainings: a guard for the AudioCraft solvers, a callback for the Accelerate trainer.

The caller hands them in: ``guard="training_checks.stability_hooks:guard"`` among the overrides of
``scripts/train_audiocraft.py``, or ``callbacks=[StabilityCallback()]``, or :func:`watch` for every training of a process.
Whatever is looked up only about a bad step (the first bad parameter, the batch's files, whether the weights are still
finite) costs a good one nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from music_training.errors import UserError
from music_training.guard import Decision, Update
from music_training.trainer import callbacks, checkpoints
from training_checks.stability_monitor import LOG, StabilityConfig, StabilityMonitor

if TYPE_CHECKING:
    from music_training.trainer.loop import Trainer


def first_bad_gradient(named: Iterable[tuple[str, nn.Parameter]]) -> str:
    """The first parameter whose gradient is not finite; empty where all are."""
    return next((name for name, value in named if value.grad is not None and not value.grad.isfinite().all()), "")


def all_finite(named: Iterable[tuple[str, nn.Parameter]]) -> bool:
    """Whether all parameters are finite."""
    return all(bool(value.isfinite().all()) for _, value in named)


# A generator's adversarial losses rise as its discriminator learns, a discriminator's as its generator does, and the sum that
# a codec's balancer makes follows the sizes of gradients: none of them says that a step is bad.
DRIFTING = {"generator": ("loss", "adv_", "feat_"), "discriminator": ("loss",)}


class MonitorGuard:
    """The monitor as ``music_training.guard.Guard``; ``changes`` are steps at which the training changes on purpose."""

    def __init__(self, monitor: StabilityMonitor, changes: Iterable[int] = ()):
        self.monitor, self.changes = monitor, frozenset(changes)

    def start_epoch(self, epoch: int, steps: int) -> None:
        self.monitor.start_epoch(epoch, steps)

    def before_step(self, update: Update) -> Decision:
        if update.step in self.changes:
            self.monitor.forget(update.part)
        return self.monitor.look(
            update.step,
            update.losses,
            update.gradient_norm,
            part=update.part,
            drifting=DRIFTING.get(update.part, ()),
            overflow=update.overflow,
            bad_parameter=lambda: first_bad_gradient(update.named_parameters()),
            files=update.files,
            weights_finite=lambda: all_finite(update.named_parameters()),
        )

    def end_epoch(self) -> None:
        self.monitor.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state)


def guard(run: Path, **options: Any) -> MonitorGuard:
    """The guard of a run folder; ``options`` are those of :class:`StabilityConfig`. Its log is ``logs/stability.jsonl``.

    A codec whose quantiser starts late (``quantize_after``) has other losses from there on, and so has one whose weights of
    the losses change (``later``): what is usual is learnt anew.
    """
    import flashy
    from omegaconf import OmegaConf

    path = run / "config.yaml"
    known = OmegaConf.load(path) if path.is_file() else {}
    changes = [known.get("quantize_after"), (known.get("later") or {}).get("step")]
    log = run / LOG if flashy.distrib.is_rank_zero() else None
    return MonitorGuard(StabilityMonitor(StabilityConfig(**options), log), [step + 1 for step in changes if step])


def watch(monitor: bool = True) -> str:
    """Have the monitor in every training of this process on the shared trainer, or not.

    Returns the ``guard`` of trainings that run as a process of their own: ``""``, as their script says, or ``null``, none.
    """
    if monitor:
        callbacks.CallbackRegistry.register(StabilityCallback.name, StabilityCallback)
        callbacks.CallbackRegistry.everywhere(StabilityCallback.name)
    else:
        callbacks.CallbackRegistry.not_everywhere(StabilityCallback.name)
    return "" if monitor else "null"


class StabilityCallback(callbacks.Callback):
    """The monitor in the Accelerate trainer: it looks at the gradients before they are clipped and the update is made.

    A skipped update leaves weights and the optimizer's averages as they are. A rewind takes weights, their average and
    the optimizer back to the newest checkpoint; the data goes on.
    """

    order = 5
    name = "stability"

    def __init__(self, config: StabilityConfig | None = None):
        self.monitor = StabilityMonitor(config)

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.is_main:
            self.monitor.log = trainer.run / LOG

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        if self.monitor.epoch != epoch + 1:  # not where an epoch is continued
            self.monitor.start_epoch(epoch + 1, len(trainer.batches.plan(epoch)) // trainer.settings.gradient_accumulation_steps)

    def on_gradients(self, trainer: Trainer) -> None:
        trainer.gradient_norm = trainer.measure_gradients()
        norm = float(trainer.gradient_norm)
        decision = self.monitor.look(
            trainer.step + 1,
            {name: float(value) for name, value in trainer.accelerator.reduce(trainer.losses, reduction="mean").items()},
            norm,
            drifting=tuple(name for name in trainer.losses if name != "loss"),  # parts of it, and figures such as accuracy
            overflow=trainer.accelerator.scaler is not None and not math.isfinite(norm),
            bad_parameter=lambda: first_bad_gradient(trainer.model.named_parameters()),
            files=trainer.examples,
            weights_finite=lambda: all_finite(trainer.model.named_parameters()),
        )
        if decision.action == "clip":
            nn.utils.clip_grads_with_norm_(trainer.trained, decision.max_norm, trainer.gradient_norm)
            trainer.gradient_norm = None
        elif decision.action != "step":
            trainer.optimizer.zero_grad(set_to_none=True)  # the optimizer passes over what has no gradient
            trainer.gradient_norm = None
        for group in trainer.optimizer.param_groups:
            group["lr"] *= decision.lr_scale
        if decision.action == "rewind":
            self._rewind(trainer, decision.cause)
        elif decision.action == "stop":
            raise UserError(f"the stability monitor stopped the training at {decision.cause}; {trainer.run / LOG} says more")

    def _rewind(self, trainer: Trainer, cause: str) -> None:
        path = checkpoints.newest(trainer.folder)
        if path is None:
            raise UserError(f"the stability monitor found no checkpoint to go back to at {cause}; {trainer.run / LOG} says more")
        checkpoints.load_weights(trainer.model, path)
        if trainer.averaged:
            trainer.averaged.load_state_dict(checkpoints.read_weights(path, averaged=True))
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        trainer.optimizer.load_state_dict(checkpoints.load_state(path)["optimizer"])
        for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: dict[str, float]) -> None:
        self.monitor.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state)
