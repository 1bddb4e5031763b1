"""Losses by name: ``LossRegistry.register("my_loss", MyLoss)``, then ``loss: {main: my_loss}`` in a configuration.

A registered loss is a factory of a callable ``(outputs, targets) -> scalar``; it gets the configuration's ``options``
and, where it takes one, ``label_smoothing``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import config
from ..errors import UserError
from .config import Loss


class LossRegistry:
    """The losses that a configuration can name."""

    _known: dict[str, Callable[..., Callable]] = {}

    @classmethod
    def register(cls, name: str, factory: Callable[..., Callable]) -> None:
        """Make ``factory`` (a class or a function that returns the loss) known as ``name``; the last one wins."""
        cls._known[name] = factory

    @classmethod
    def names(cls) -> list[str]:
        """All known names."""
        return sorted(cls._known)

    @classmethod
    def create(cls, name: str, **options: Any) -> Callable:
        """Build the loss called ``name``; UserError for an unknown name or option."""
        if name not in cls._known:
            raise UserError(f"loss {name!r}: unknown{config.suggest(name, cls._known)}")
        taken = inspect.signature(cls._known[name]).parameters
        for option in options:
            if option not in taken and not any(item.kind is item.VAR_KEYWORD for item in taken.values()):
                raise UserError(f"loss {name!r} has no option {option!r}{config.suggest(option, taken)}")
        return cls._known[name](**options)


class WeightedLoss(nn.Module):
    """The main loss plus weighted auxiliary ones: returns ``loss`` (their sum) and each part under its own name."""

    def __init__(self, settings: Loss):
        super().__init__()
        smoothing = {"label_smoothing": settings.label_smoothing} if settings.label_smoothing else {}
        self.parts = {settings.main: (1.0, LossRegistry.create(settings.main, **settings.options, **smoothing))}
        for name, weight in settings.auxiliary.items():
            self.parts[name] = (weight, LossRegistry.create(name))

    def forward(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss of outputs against targets, in the shapes that the main loss wants."""
        values = {name: loss(outputs, targets) for name, (_, loss) in self.parts.items()}
        return {"loss": sum(weight * values[name] for name, (weight, _) in self.parts.items()), **values}


def focal_bce(logits: Tensor, targets: Tensor, gamma: float = 2.0, positive_weight: float = 1.0) -> Tensor:
    """Focal binary cross-entropy (Lin et al. 2017, eq. 5) per element; soft targets in [0, 1].

    Easy elements count ``|target - p| ** gamma``; positive ones ``positive_weight`` times as much. Same shape as given.
    """
    cross_entropy = functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none", pos_weight=logits.new_tensor(positive_weight)
    )
    return cross_entropy * (targets - torch.sigmoid(logits)).abs() ** gamma


def mean(loss: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of a loss over the elements whose weight counts."""
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum().clamp(min=1e-6)


LossRegistry.register("cross_entropy", nn.CrossEntropyLoss)
LossRegistry.register("mse", nn.MSELoss)
LossRegistry.register("l1", nn.L1Loss)
LossRegistry.register("bce", nn.BCEWithLogitsLoss)
LossRegistry.register(
    "focal_bce",
    lambda gamma=2.0, positive_weight=1.0: lambda outputs, targets: focal_bce(outputs, targets, gamma, positive_weight).mean(),
)
LossRegistry.register("norm_reg", lambda: lambda outputs, targets: outputs.float().pow(2).mean())
