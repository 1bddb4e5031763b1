"""What a training will take and cost: measured steps a second x epochs x the price of the machine."""

from __future__ import annotations

import time

from .. import runs
from .config import BridgeSettings


def estimate(
    settings: BridgeSettings, price_per_hour: float, epochs: int | None = None, steps: int = 6, examples: int | None = None
) -> str:
    """Measure ``steps`` updates on this machine's device and scale them to the training; returns the lines to print."""
    from ..trainer.loop import Trainer
    from .train import system_of

    system = system_of(settings)
    trainer = Trainer(system, settings.training, runs.folder())
    trainer._plan = trainer.batches.plan(0)
    updates = trainer.batches.updates(0, 0)
    counted, started = 0, 0.0
    for number, (_, batches) in enumerate(updates):
        if number == 1 or (number == 0 and len(trainer._plan) == 1):
            started = time.monotonic()  # the first update warms up
        trainer._update(batches)
        _wait()
        counted += bool(started)
        if number >= steps:
            break
    rate = counted / (time.monotonic() - started)
    total = examples or len(system)
    size = settings.training.batch_size * settings.training.gradient_accumulation_steps * trainer.processes
    epochs = epochs or settings.training.epochs
    updates_all = -(-total // size) * epochs
    hours = updates_all / rate / 3600
    return "\n".join(
        [
            f"{settings.model}: {rate:.3g} updates a second on {trainer.device}, {counted} measured (training only)",
            f"{total} examples / {size} an update x {epochs} epochs = {updates_all} updates",
            f"{hours:.2f} hours x {price_per_hour:.2f} an hour = {hours * price_per_hour:.2f}; early stopping can end it sooner",
        ]
    )


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
