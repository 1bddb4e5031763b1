"""What a system supplies to the trainer, and how its examples become the batches of every process.

The order of an epoch is a plan: a list of batches (lists of example numbers) that depends on the seed and the epoch
alone. Process ``r`` of ``n`` takes every ``n``-th batch. A checkpoint holds how many batches of the plan are done, so
a resumed run, also one with another number of processes, goes on with the next: every example is seen exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

if TYPE_CHECKING:
    from .config import Training
    from .loop import Trainer


class System:
    """Model, loss, validation and examples of one task; the trainer does the rest."""

    model: nn.Module

    def __len__(self) -> int:
        """How many training examples there are."""
        raise NotImplementedError

    def example(self, index: int, rng: numpy.random.Generator) -> Any:
        """One training example; all its randomness comes from ``rng``, which depends on seed, epoch and index."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What a training example is called where it is to be looked at: its file, if it has one."""
        return f"example {index}"

    def collate(self, examples: list[Any]) -> Any:
        """A batch of examples: nested tensors, which the trainer moves to the device."""
        return default_collate(examples)

    def plan(self, batch_size: int, rng: numpy.random.Generator) -> list[list[int]]:
        """The batches of one epoch, every example in exactly one of them."""
        order = rng.permutation(len(self)).tolist()
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Losses of a batch, means over its examples; ``loss`` is the one to minimise. Call ``model``, not ``self.model``."""
        raise NotImplementedError

    def validate(self, trainer: Trainer) -> dict[str, float]:
        """Metrics of the model (in eval mode, without gradients) on held-out data; names as they are to be logged.

        Every process calls it; ``trainer.share(items)`` is this process's part and ``trainer.gather(items)`` joins them.
        """
        return {}


class _Examples(Dataset):
    """Examples by (epoch, index). One generator is moved from example to example: making one anew takes 20 times as long."""

    def __init__(self, system: System, seed: int):
        self.system = system
        self._bits = numpy.random.Philox(key=[seed, 0])
        self._rng, self._state = numpy.random.Generator(self._bits), self._bits.state

    def __getitem__(self, key: tuple[int, int]) -> Any:
        self._state["state"]["counter"][:] = (0, 0, *key)
        self._bits.state = self._state
        return self.system.example(key[1], self._rng)


class Batches:
    """The batches of this process, epoch by epoch."""

    def __init__(self, system: System, settings: Training, process: int, processes: int, pin: bool):
        self.system, self.settings = system, settings
        self.process, self.processes = process, processes
        self._keys: list[list[tuple[int, int]]] = []
        performance = settings.performance
        workers = performance.num_workers
        self._loader = DataLoader(
            _Examples(system, settings.random_seed),
            batch_sampler=self,
            collate_fn=system.collate,
            num_workers=workers,
            pin_memory=pin and performance.pin_memory,
            prefetch_factor=performance.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(settings.random_seed),  # leaves torch's own generator alone
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def plan(self, epoch: int) -> list[list[int]]:
        """The plan of an epoch, the same in all processes."""
        return self.system.plan(self.settings.batch_size, numpy.random.default_rng((self.settings.random_seed, epoch)))

    def updates(self, epoch: int, done: int) -> Iterator[tuple[int, list[tuple[Any, float]]]]:
        """Yield, for each update of an epoch, how many batches of the plan it uses and this process's ``(batch, weight)``.

        ``done`` batches of the plan are skipped. The weights make the mean over processes of the weighted losses the
        mean over all examples of the update; a process for which the end of the plan has no batch left gets one of
        weight 0, so that all of them take part in the exchange of gradients.
        """
        plan = self.plan(epoch)
        size = self.processes * self.settings.gradient_accumulation_steps
        groups = [plan[start : start + size] for start in range(done, len(plan), size)]
        self._keys, weights = [], []
        for group in groups:
            examples = sum(map(len, group))
            for first in range(0, len(group), self.processes):
                place = first + self.process
                own = group[place] if place < len(group) else group[first][:1]
                self._keys.append([(epoch, index) for index in own])
                weights.append(len(own) * self.processes / examples if place < len(group) else 0.0)
        loaded = iter(zip(self._loader, weights, strict=True))
        for group in groups:
            yield len(group), [next(loaded) for _ in range(0, len(group), self.processes)]
