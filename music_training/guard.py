"""What looks after a training before each update: the contract between the loops and a monitor that a caller hands in.

A loop shows a :class:`Guard` every update after the backward pass and before the optimizer steps, and does what its
:class:`Decision` says. Nothing here knows a framework. A training that runs as a process of its own is given the
guard by the import path of a factory, ``"package.module:function"``, which :func:`load` calls in that process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .errors import UserError

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Update:
    """An update that is about to be made.

    ``part`` names what is trained: ``generator`` (a codec), ``discriminator``, ``lm``, ``model`` elsewhere. ``losses``
    (``loss`` and its parts) and ``gradient_norm`` are those of the whole batch, the same in every process of a
    training. ``overflow``: the gradients are those of a scaled fp16 loss and not finite, which is no fault. The
    functions cost something: ``named_parameters()`` (with their gradients) and ``files()``, the paths of the batch's
    examples, which every process must ask for or none.
    """

    part: str
    step: int
    epoch: int
    losses: Mapping[str, float]
    gradient_norm: float
    named_parameters: Callable[[], Iterable[tuple[str, Parameter]]]
    optimizer: Optimizer
    files: Callable[[], list[str]] = list
    overflow: bool = False


@dataclass(frozen=True)
class Decision:
    """What is to be done with an update.

    ``step`` makes it; ``clip`` makes it with gradients of at most ``max_norm``; ``skip`` leaves the weights (and a
    codec's codebooks) as they are; ``rewind`` goes back to the last checkpoint and on with the data after this batch;
    ``stop`` ends the training with ``cause``. ``lr_scale`` multiplies the learning rate of this update.
    """

    action: Literal["step", "clip", "skip", "rewind", "stop"] = "step"
    max_norm: float | None = None
    lr_scale: float = 1.0
    cause: str = ""


class Guard(Protocol):
    """What a loop calls. Every process has one and must come to the same decision, which it does from the same numbers.

    Checkpoints carry ``state_dict()`` (plain values); a rewind leaves the guard's state as it is.
    """

    def start_epoch(self, epoch: int, steps: int) -> None:
        """Before the first update of an epoch (from 1) of ``steps`` updates; not again where one is continued."""

    def before_step(self, update: Update) -> Decision:
        """Judge an update."""

    def end_epoch(self) -> None:
        """After the last update of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a continued training needs: plain values only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""


def load(path: str, run: Path, options: Mapping[str, Any] | None = None) -> Guard:
    """The guard that the factory at ``package.module:function`` makes for a run folder; UserError where there is none."""
    module, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"guard {path!r}: {error}; write it as package.module:function") from None
    return factory(run, **(options or {}))
