"""Faults put into real trainings, and who looks after them: ``guard=faults:faulty`` with its options.

The factory runs in the training's own process, before its first update, and changes the solvers there.
"""

import math
from pathlib import Path

import torch

from music_training.guard import Decision, Update
from music_training.musicgen import solvers
from training_checks import stability_hooks


class Planned:
    """Lets every update be made, but for those it was told about."""

    def __init__(self, plan: dict | None = None):
        self.plan, self.asked = {str(number): decision for number, decision in (plan or {}).items()}, 0

    def start_epoch(self, epoch: int, steps: int) -> None:
        pass

    def before_step(self, update: Update) -> Decision:
        self.asked += update.part != "discriminator"
        if update.part == "discriminator":
            return Decision()
        return Decision(**self.plan.get(str(self.asked), {}))

    def end_epoch(self) -> None:
        pass

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def faulty(
    run: Path,
    fault: str = "",
    at: list | None = None,
    monitor: bool = True,
    plan: dict | None = None,
    record: list | None = None,
    **options,
):
    """A guard for a run into whose updates number ``at`` (counted as they come, from 1) a ``fault`` is put.

    nan_loss, inf_gradient, huge_gradient, bad_weights, high_scale (of the fp16 scaler), nan_discriminator, and from the
    first of them on growing_rate (ten times the rate of the update before). Without ``monitor`` a guard that knows only
    its ``plan``: number of the update to decision. The weights before the updates ``record`` are kept as ``logs/before_<number>.th``.
    """
    _inject(run, fault, set(at or []), set(record or []))
    return stability_hooks.guard(run, **options) if monitor else Planned(plan)


def _inject(run: Path, fault: str, at: set, record: set) -> None:
    count, usual = 0, []
    for solver in (solvers.CodecSolver, solvers.LanguageModelSolver):
        upstream = solver.make_update

        def make_update(self, part, module, optimizer, losses, *more, upstream=upstream, **named):
            nonlocal count
            if part == "discriminator":  # is asked before the generator of the same update
                if fault == "nan_discriminator" and count + 1 in at:
                    losses = {name: value * math.nan for name, value in losses.items()}
                    for value in module.parameters():
                        value.grad.fill_(math.nan)
                return upstream(self, part, module, optimizer, losses, *more, **named)
            count += 1
            if count in record:
                torch.save(module.state_dict(), run / "logs" / f"before_{count}.th")
            parameters = [value for value in module.parameters() if value.grad is not None]
            if fault == "growing_rate" and count >= min(at):
                for group in optimizer.param_groups:
                    group["lr"] = group.get("initial_lr", 1e-3) * 10.0 ** (1 + count - min(at))
            elif count in at:
                if fault == "nan_loss":
                    losses = {name: value * math.nan for name, value in losses.items()}
                    for value in parameters:
                        value.grad.fill_(math.nan)
                elif fault == "inf_gradient":
                    parameters[-1].grad.view(-1)[0] = math.inf
                elif fault == "huge_gradient":
                    for value in parameters:
                        value.grad.mul_(1e4)
                elif fault == "bad_weights":
                    losses = {name: value * math.nan for name, value in losses.items()}
                    with torch.no_grad():
                        parameters[0].view(-1)[0] = math.nan
                    parameters[0].grad.fill_(math.nan)
            return upstream(self, part, module, optimizer, losses, *more, **named)

        def use_scaler(self, upstream=solver.use_scaler):
            upstream(self)
            if self.scaler:  # coming down from 65536 takes tiny models more steps than they have
                self.scaler._init_scale = 16.0

        solver.make_update, solver.use_scaler = make_update, use_scaler
        if fault == "high_scale":

            def with_high_scale(self, value, scaled=solver.scaled):
                if count + 1 in at and not usual:
                    usual.append(float(self.scaler._scale))
                    self.scaler._scale.fill_(2.0**60)
                elif usual and count + 1 not in at:
                    self.scaler._scale.fill_(usual.pop() / 2)
                return scaled(self, value)

            solver.scaled = with_high_scale
