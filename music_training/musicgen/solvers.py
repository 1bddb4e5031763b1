"""AudioCraft's solvers in this project's run folders, with resumes that repeat an undisturbed run.

Upstream leaves unsaved what decides the next epoch: the random state, the order of the data, the generators of the
dropout modules and the loss balancer's moving average. Here every epoch is seeded from (seed, epoch) and the balancer
is saved, so that a run continued from an epoch's checkpoint ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import random
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import flashy
import numpy
import torch
from audiocraft.solvers.builders import get_lr_scheduler
from audiocraft.solvers.compression import CompressionSolver
from audiocraft.solvers.musicgen import MusicGenSolver
from audiocraft.utils.utils import get_dataset_from_loader
from omegaconf import DictConfig
from torch.nn import functional

from .. import guard, heartbeat, runs
from .captions import CaptionSettings
from .codebooks import revive, start_codebooks, unquantised
from .examples import refine
from .models import save_weights
from .tokens import Tokens


class RunFolderSolver:
    """What both solvers share: where files go, rows of metrics, seeding by epoch. A mixin before an AudioCraft solver."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.step = 0
        self._rows: runs.Metrics | None = None
        self._heart = heartbeat.Heartbeat(self.folder)
        self._clock = time.monotonic()

    # Where files lie

    def checkpoint_path(self, **_: Any) -> Path:
        return self.folder / runs.CHECKPOINTS / "last.th"

    def epoch_checkpoint_path(self, epoch: int, **_: Any) -> Path:
        return self.folder / runs.CHECKPOINTS / f"state_{epoch}.th"

    def should_run_stage(self, stage_name: str) -> bool:
        """Upstream's schedule, for the stages whose data the configuration names."""
        return stage_name in self.dataloaders and super().should_run_stage(stage_name)

    # Metrics

    def run(self) -> None:
        """Train to the end, from the last checkpoint where there is one."""
        assert self.state_dict()
        self.restore(replay_metrics=False)
        self.step = (self.epoch - 1) * self.train_updates_per_epoch
        if flashy.distrib.is_rank_zero():
            self._rows = runs.Metrics(self.folder, keep_through=self.step)
        for _ in range(self.epoch, self.cfg.optim.epochs + 1):
            self.seed_epoch()
            self.run_epoch()
            self.commit()
        if self._rows:
            self._rows.close()
            self._heart.end()

    def run_step(self, idx: int, batch: Any, metrics: dict) -> dict:
        metrics = super().run_step(idx, batch, metrics)
        if self._rows:
            self._heart.beat(self.step)
        if self.is_training:
            self.step += 1
            if self.step % self.cfg.logging.every == 0:
                self._log("train", metrics)
        return metrics

    def commit(self, save_checkpoints: bool = True) -> None:
        epoch, stages = self.epoch, dict(self._pending_metrics)
        if "valid" in stages:
            self._log("valid", {name: value for name, value in stages["valid"].items() if name != "duration"})
        if flashy.distrib.is_rank_zero():
            self._keep_weights(epoch)
        super().commit(save_checkpoints)

    def _log(self, stage: str, metrics: dict) -> None:
        if self._rows is None:
            return
        seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
        values = {name: float(value) for name, value in metrics.items()}
        self._rows.append(self.step, epoch=self.epoch, stage=stage, seconds=round(seconds, 3), **values)

    # Weights for inference

    def _keep_weights(self, epoch: int) -> None:
        """Weights of the epoch (averaged where there is an average) every so often, and the best ones when they change."""
        checkpoints = self.folder / runs.CHECKPOINTS
        if self._new_best_state:
            save_weights(checkpoints / "best", self.best_state.state_dict()["model"], self.cfg)
        if epoch % self.cfg.checkpoint.keep_weights_every == 0 or epoch == self.cfg.optim.epochs:
            state = self.ema.state_dict()["state"]["model"] if self.ema else self.model.state_dict()
            save_weights(checkpoints / f"epoch_{epoch}", state, self.cfg)

    # Repeatable epochs

    def seed_epoch(self) -> None:
        """Put every source of randomness into the state that belongs to (seed, epoch)."""
        seed = self.cfg.seed + 7919 * self.epoch + 104729 * flashy.distrib.rank()
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        for module in self.model.modules():
            if isinstance(getattr(module, "rng", None), torch.Generator):
                module.rng.manual_seed(seed)
        for loader in self.dataloaders.values():
            get_dataset_from_loader(loader).current_epoch = self.epoch


class Averager:
    """The moving average of :func:`flashy.averager`, as an object whose state is saved with the checkpoint."""

    def __init__(self, beta: float):
        self.beta = beta
        self.totals: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def __call__(self, metrics: dict[str, Any], weight: float = 1.0) -> dict[str, float]:
        for key, value in metrics.items():
            self.totals[key] = self.totals.get(key, 0.0) * self.beta + weight * float(value)
            self.weights[key] = self.weights.get(key, 0.0) * self.beta + weight
        return {key: total / self.weights[key] for key, total in self.totals.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"totals": dict(self.totals), "weights": dict(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.totals, self.weights = dict(state["totals"]), dict(state["weights"])


class CodecSolver(RunFolderSolver, CompressionSolver):
    """Trains the codec; with a learning-rate schedule where ``schedule`` names one, which upstream's solver ignores."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.balancer.averager = Averager(cfg.balancer.ema_decay or 1.0)
        self.register_stateful("balancer.averager")
        self._each_epoch = guard.load(cfg.each_epoch, self.folder) if cfg.each_epoch and flashy.distrib.is_rank_zero() else None
        self.lr_scheduler = get_lr_scheduler(self.optimizer, cfg.schedule, self.total_updates)
        if self.lr_scheduler:
            self.register_stateful("lr_scheduler")

    def commit(self, save_checkpoints: bool = True) -> None:
        epoch = self.epoch
        super().commit(save_checkpoints)
        if self._each_epoch:
            self._each_epoch(epoch, self.model)

    def build_model(self) -> None:
        super().build_model()
        if self.cfg.living_codebooks:
            revive(self.model)

    def run_step(self, idx: int, batch: Any, metrics: dict) -> dict:
        if self.is_training and self.step == self.cfg.quantize_after:
            start_codebooks(self.model, self.dataloaders["train"])
        with unquantised(self.model) if self.is_training and self.step < self.cfg.quantize_after else nullcontext():
            metrics = super().run_step(idx, batch, metrics)
        if self.is_training and self.lr_scheduler:
            metrics["lr"] = self.optimizer.param_groups[0]["lr"]
            self.lr_scheduler.step()
        return metrics


class LanguageModelSolver(RunFolderSolver, MusicGenSolver):
    """Trains MusicGen's language model on the codec's tokens: from the token cache, or encoded on the way."""

    def build_dataloaders(self) -> None:
        super().build_dataloaders()
        tokens = Tokens(self.cfg.token_cache) if self.cfg.token_cache else None
        captions = CaptionSettings(**self.cfg.captions) if self.cfg.captions else None
        for split, loader in self.dataloaders.items():
            cached = tokens if split in ("train", "valid") else None
            refine(get_dataset_from_loader(loader), captions, self.cfg.seed, cached, self.cfg.transformer_lm.card)

    def _prepare_tokens_and_attributes(self, batch: Any, check_synchronization_points: bool = False) -> Any:
        """Conditions, tokens ``[B, K, T]`` and the mask of those that count, as upstream's; cached tokens are not encoded."""
        codes, infos = batch
        if codes.is_floating_point():  # audio
            return super()._prepare_tokens_and_attributes(batch, check_synchronization_points)
        codes = codes.to(self.device, non_blocking=True)
        attributes = [info.to_condition_attributes() for info in infos]
        tokenized = self.model.condition_provider.tokenize(self.model.att_dropout(self.model.cfg_dropout(attributes)))
        with self.autocast:
            conditions = self.model.condition_provider(tokenized)
        return conditions, codes, codes != self.model.special_token_id

    def _compute_cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> Any:
        """Upstream's figures, nats per token, their mean and each codebook's; without a copy of all logits a codebook.

        ``logits [B, K, T, card]``, ``targets`` and ``mask [B, K, T]``. Logits outside of the mask are NaN and touch nothing.
        """
        losses = functional.cross_entropy(logits.movedim(-1, 1), targets.masked_fill(~mask, -100), reduction="none")
        each = losses.sum(dim=(0, 2)) / mask.sum(dim=(0, 2))
        return each.mean(), list(each.detach())


SOLVERS = {"compression": CodecSolver, "musicgen": LanguageModelSolver}
