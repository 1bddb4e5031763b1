"""Training batches by number: what batch ``n`` of an epoch holds follows from (seed, epoch, n) alone.

So a run that is continued begins with the batch that comes next and reads none of those before it, and the processes of
a distributed run read together exactly what one process would have read.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler, Subset


def seed_of(*parts: object) -> int:
    """A seed (32 bit) that belongs to these numbers and words, and to no others."""
    return int.from_bytes(hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=4).digest(), "little")


class Numbered(Sampler):
    """Example numbers of one process's batches, without end, from batch ``start`` of ``epoch`` on.

    A batch of all processes holds ``size * world`` examples and is read in ``parts`` (gradient accumulation): an item
    of this sampler is one part of this process's share. ``scattered`` spreads the examples over ``length`` numbers, as
    a data set needs that draws by number; otherwise they are counted through.
    """

    def __init__(self, length: int, size: int, parts: int, seed: int, scattered: bool, rank: int = 0, world: int = 1):
        self.length, self.size, self.parts, self.seed, self.scattered = length, size, parts, seed, scattered
        self.rank, self.world = rank, world
        self.epoch, self.start = 1, 0

    def examples(self, epoch: int, number: int) -> list[int]:
        """This process's examples of batch ``number``."""
        first = (number * self.world + self.rank) * self.size
        positions = range(first, first + self.size)
        if not self.scattered:
            return [position % self.length for position in positions]
        return [seed_of(self.seed, epoch, position) % self.length for position in positions]

    def __iter__(self) -> Iterator[list[int]]:
        epoch, part = self.epoch, self.size // self.parts
        for number in itertools.count(self.start):
            examples = self.examples(epoch, number)
            yield from (examples[first : first + part] for first in range(0, self.size, part))

    def __len__(self) -> int:
        return max(1, self.length // (self.size * self.world))


class Repeatable(Subset):
    """A data set whose example is the same whoever reads it and whatever was read before.

    AudioCraft's data sets draw from a generator of their own, seeded by (epoch, number), but change texts with
    Python's; that one is seeded here.
    """

    def __init__(self, dataset: Any, seed: int):
        super().__init__(dataset, range(len(dataset)))
        self.seed = seed

    def __getitem__(self, index: int) -> Any:
        random.seed(seed_of(self.seed, self.dataset.current_epoch, index))
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


def numbered_loader(loader: DataLoader, size: int, parts: int, seed: int, rank: int = 0, world: int = 1) -> DataLoader:
    """A loader over the data set of AudioCraft's ``loader`` that reads by number; ``size`` is of one process's whole batch."""
    dataset = loader.dataset
    scattered = not getattr(dataset, "permutation_on_files", False)
    workers: dict[str, Any] = {"prefetch_factor": 4} if loader.num_workers else {}
    return DataLoader(
        Repeatable(dataset, seed),
        batch_sampler=Numbered(len(dataset), size, parts, seed, scattered, rank, world),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=torch.cuda.is_available(),
        **workers,
    )
