"""Where metrics go: ``metrics.jsonl`` always, TensorBoard and Weights & Biases by choice (Accelerate's trackers)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .. import runs
from ..errors import UserError
from .config import Logging


class Trackers:
    """Writes rows of metrics; a context manager. Rows after the step that is continued from are dropped first."""

    def __init__(self, run: Path, settings: Logging, step: int, is_main: bool):
        self.settings, self._trackers, self._rows = settings, [], None
        if not is_main:
            return
        self._rows = runs.Metrics(run, keep_through=step)
        if settings.tensorboard:
            from accelerate.tracking import TensorBoardTracker

            self._trackers.append(TensorBoardTracker("", run / "logs", purge_step=step + 1 if step else None))
        if settings.wandb:
            if importlib.util.find_spec("wandb") is None:
                raise UserError("logging.wandb: the package wandb is not installed; `pip install wandb` or set it to false")
            from accelerate.tracking import WandBTracker

            name = {"name": run.name, "id": run.name, "resume": "allow", "dir": str(run / "logs"), "entity": settings.wandb_entity}
            self._trackers.append(WandBTracker(settings.wandb_project, **name))
        for tracker in self._trackers:
            tracker.start()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._rows.close()
        for tracker in self._trackers:
            tracker.finish()

    def write(self, kind: str, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Write a row of ``train`` or ``val`` metrics; in the trackers they are called ``train/total_loss``, ``val/f1``."""
        if self._rows is None:
            return
        kept = self.settings.log_metrics
        if kept is not None:
            metrics = {name: value for name, value in metrics.items() if name in kept or name.removeprefix("val_") in kept}
        self._rows.append(step, epoch=epoch, **metrics)
        named = {name.removeprefix("val_"): value for name, value in metrics.items()}
        shown = {f"{kind}/{'total_loss' if name == 'loss' else name}": value for name, value in named.items()}
        for tracker in self._trackers:
            tracker.log(shown, step=step)

    def flush(self) -> None:
        """Bring what was written to the disk, so that no checkpoint is ahead of its metrics."""
        if self._rows:
            self._rows.flush()
