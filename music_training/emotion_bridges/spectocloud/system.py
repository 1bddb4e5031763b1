"""Spectocloud as a system of the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from ...trainer.system import System
from ..config import SpectocloudSettings
from . import chamfer
from .data import Clip, Clips
from .model import Spectocloud


class CloudSystem(System):
    """Learns clouds of random clips; validates on the clips of held-out artists."""

    def __init__(self, settings: SpectocloudSettings, train: Clips, held: Clips):
        self.settings, self.train, self.held = settings, train, held
        torch.manual_seed(settings.training.random_seed)
        self.model = Spectocloud(settings)
        self._clips: list[Clip] = []

    @property
    def held_clips(self) -> list[Clip]:
        """The validation clips, made once."""
        self._clips = self._clips or self.held.all()
        return self._clips

    def __len__(self) -> int:
        return len(self.train.entries) * self.settings.crops

    def example(self, index: int, rng: numpy.random.Generator) -> tuple[numpy.ndarray, ...]:
        clip = self.train.random(index // self.settings.crops, rng)
        return clip.mel, clip.emotion, clip.cloud, clip.colours

    def name(self, index: int) -> str:
        return self.train.entries[index // self.settings.crops].audio_path

    def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, Tensor]:
        mel, emotion, cloud, colours = batch
        made, tint = model(mel, emotion)
        match = chamfer.nearest(made, cloud)
        position = chamfer.chamfer(made.float(), cloud, match).mean()
        colour = chamfer.colour_error(tint.float(), colours, match).mean()
        return {"loss": position + self.settings.color_weight * colour, "pos_loss": position, "color_loss": colour}

    def validate(self, trainer) -> dict[str, float]:
        rows = trainer.gather([self.row(trainer.model, clip, trainer.device) for clip in trainer.share(self.held_clips)])
        return {f"val_{name}": float(numpy.mean([row[name] for row in rows])) for name in rows[0]}

    def row(self, model: torch.nn.Module, clip: Clip, device: torch.device) -> dict[str, float]:
        """Losses of one clip, and its F-score."""
        batch = tensors([clip], device)
        losses = {name: float(value) for name, value in self.loss(model, batch).items()}
        return losses | {"f_score": float(chamfer.f_score(model(*batch[:2])[0], batch[2]))}


def tensors(clips: Sequence[Clip], device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Mel, emotion, cloud and colours of clips as a batch."""
    columns = zip(*((clip.mel, clip.emotion, clip.cloud, clip.colours) for clip in clips), strict=True)
    return tuple(torch.from_numpy(numpy.stack(column)).to(device) for column in columns)
