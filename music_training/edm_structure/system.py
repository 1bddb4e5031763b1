"""EDM structure as a system of the trainer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

from .. import files
from ..errors import UserError
from ..trainer.system import System
from . import evaluation, losses
from . import model as models
from .config import EdmSettings
from .data import AnnotatedTrack, Example, split
from .inference import Predictor


class EdmSystem(System):
    """Trains on random crops of the training artists' tracks, validates on whole tracks of the held-out ones."""

    def __init__(self, settings: EdmSettings, tracks: Sequence[AnnotatedTrack]):
        self.settings = settings
        self.train_tracks, self.held_out = split(tracks, settings)
        if not self.train_tracks or not self.held_out:
            raise UserError(f"{len(tracks)} track(s) of one artist cannot be divided into training and held-out artists; add more")
        torch.manual_seed(settings.training.random_seed)
        self.model = models.build(settings)
        self.training, self.validation = self.examples(self.train_tracks), self.examples(self.held_out)

    def examples(self, tracks: Sequence[AnnotatedTrack]) -> Example:
        """The source of crops that suits the backbone."""
        return Example(tracks, self.settings)

    def __len__(self) -> int:
        return len(self.train_tracks) * self.settings.crops

    def example(self, index: int, rng: numpy.random.Generator) -> dict[str, torch.Tensor]:
        return self.training.crop(index // self.settings.crops, rng)

    def name(self, index: int) -> str:
        return files.relative(self.train_tracks[index // self.settings.crops].audio)

    def loss(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return losses.total(model(batch["inputs"]), batch, self.settings)

    def validate(self, trainer) -> dict[str, float]:
        predictor = Predictor(trainer.model, self.settings)
        rows = []
        for number in trainer.share(list(range(len(self.held_out)))):
            batch = {name: value.to(trainer.device) for name, value in self.validation.whole(number).items()}
            row = {f"val_{name}": float(value) for name, value in self.loss(trainer.model, batch).items()}
            rows.append(row | {f"val_{name}": value for name, value in self.scores(predictor, number).items()})
        rows = trainer.gather(rows)
        return {name: float(numpy.mean([row[name] for row in rows])) for name in rows[0]}

    def scores(self, predictor: Predictor, number: int) -> dict[str, float]:
        """Scores of the held-out track ``number``."""
        return evaluation.of_features(predictor, self.held_out[number], self.validation.features[number])


def system_of(settings: EdmSettings, tracks: Sequence[AnnotatedTrack]) -> EdmSystem:
    """The system that suits the settings' backbone."""
    if models.resolve_backbone(settings.backbone) == "cnn":
        return EdmSystem(settings, tracks)
    from .mert import MertSystem

    return MertSystem(settings, tracks)
