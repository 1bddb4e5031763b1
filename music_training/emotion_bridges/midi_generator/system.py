"""The MIDI generator as a system of the trainer."""

from __future__ import annotations

import math
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from ...trainer.system import System
from ..config import MidiSettings
from . import baselines
from .data import Excerpts, context_of, padded
from .model import MidiTransformer
from .tokenizer import PAD


class MidiSystem(System):
    """Learns the next token of excerpts; validates on those of held-out artists."""

    def __init__(self, settings: MidiSettings, train: Excerpts, held: Excerpts):
        self.settings, self.train, self.held = settings, train, held
        torch.manual_seed(settings.training.random_seed)
        bigrams = torch.from_numpy(baselines.log_bigrams(baselines.counts(train.tokens))) if settings.bigrams else None
        self.model = MidiTransformer(settings, bigrams)
        self.sizes = numpy.array([len(row) for row in train.tokens])

    def __len__(self) -> int:
        return len(self.train)

    def plan(self, batch_size: int, rng: numpy.random.Generator) -> list[list[int]]:
        """Batches of about equal lengths, in random order: little padding."""
        order = numpy.argsort(self.sizes * rng.uniform(0.85, 1.15, len(self.sizes)), kind="stable")
        batches = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
        return [batches[number] for number in rng.permutation(len(batches))]

    def example(self, index: int, rng: numpy.random.Generator) -> tuple[numpy.ndarray, ...]:
        train, lost = self.train, rng.random(3) < [self.settings.drop, 0.5, 0.5]
        context = context_of(None if lost[1] else train.tempo[index], None if lost[2] else bool(train.major[index]), not lost[0])
        return train.tokens[index], train.emotion[index] * (not lost[0]), context

    def collate(self, examples: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
        tokens, emotion, context = zip(*examples, strict=True)
        return torch.from_numpy(padded(tokens)), torch.from_numpy(numpy.stack(emotion)), torch.from_numpy(numpy.stack(context))

    def loss(self, model: torch.nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        total, right, count = self.totals(model, batch)
        return {"loss": total / count, "accuracy": right / count}

    @staticmethod
    def totals(model: torch.nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the cross-entropy, number of right tokens, number of tokens."""
        tokens, emotion, context = batch
        logits = model(tokens[:, :-1], emotion, context).float()
        targets = tokens[:, 1:]
        total = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="sum")
        return total, (logits.argmax(-1) == targets).sum(), (targets != PAD).sum()

    def validate(self, trainer) -> dict[str, float]:
        found = self.evaluate(trainer.model, trainer.device, trainer.share(self.batches(trainer.settings.validation.batch_size)))
        return summary(trainer.gather([found]) if trainer.processes > 1 else [found])

    def batches(self, size: int | None = None) -> list[list[int]]:
        """The held-out excerpts in batches of about equal lengths."""
        order = sorted(range(len(self.held)), key=lambda number: len(self.held.tokens[number]))
        size = size or self.settings.training.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    @torch.no_grad()
    def evaluate(self, model: torch.nn.Module, device: torch.device, batches: list[list[int]]) -> list[float]:
        """Sums over held-out batches, with the emotion known and tempo and mode not: cross-entropy, right tokens, tokens."""
        sums = numpy.zeros(3)
        for batch in batches:
            rows = [(self.held.tokens[number], self.held.emotion[number], context_of()) for number in batch]
            made = tuple(part.to(device) for part in self.collate(rows))
            sums += [float(value) for value in self.totals(model, made)]
        return sums.tolist()


def summary(parts: list[list[float]]) -> dict[str, float]:
    """Validation metrics from the sums of all processes."""
    total, right, count = numpy.sum(parts, axis=0)
    loss = float(total / count)
    return {"val_loss": loss, "val_perplexity": math.exp(min(loss, 50.0)), "val_accuracy": float(right / count)}
