"""The sample order: a pure function of (seed, epoch, index).

Seeking costs nothing, and since ranks cut the global batch into equal consecutive parts, and those into equal
consecutive micro-batches, the same global batch is seen by 1, 2, 4 or 8 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jobs.errors import SpecError
from rexnet.data.keyed import Domain, keyed

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOrder:
    """Which samples each step sees: every epoch a new permutation, its incomplete last batch left out.

    Without `shuffle` every epoch has the samples in the order of their numbers. Where the split has more samples than
    `num_samples` (`split_size`; 0: as many), they are spread evenly over it, so that each class has its share, and
    every epoch has the same ones. A sample's number is always that in the split.
    """

    seed: int
    num_samples: int
    global_batch: int
    shuffle: bool = True
    split_size: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch:
            raise SpecError(
                f"batch_size: a global batch of {self.global_batch} is larger than the {self.num_samples} samples",
                hint="lower batch_size or use fewer workers",
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_samples // self.global_batch

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that the step with this index (from 0) belongs to."""
        return step // self.steps_per_epoch

    def global_indices(self, step: int) -> Indices:
        """Samples of the step with this index (from 0), in order; shape (global_batch,)."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.global_batch
        if self.shuffle:
            chosen = permutation(self.seed, epoch, self.num_samples)[start : start + self.global_batch]
        else:
            chosen = np.arange(start, start + self.global_batch)
        return chosen * self.split_size // self.num_samples if self.split_size else chosen

    def share(self, step: int, rank: int, world_size: int) -> tuple[range, Indices]:
        """Positions in the global batch that `rank` computes, and the samples there."""
        if self.global_batch % world_size:
            raise SpecError(f"batch_size: {self.global_batch} samples do not divide by {world_size} workers")
        size = self.global_batch // world_size
        positions = range(rank * size, (rank + 1) * size)
        return positions, self.global_indices(step)[positions.start : positions.stop]

    def micro_batches(self, step: int, rank: int, world_size: int, accumulation: int) -> list[tuple[range, Indices]]:
        """The share of `rank`, cut into `accumulation` equal consecutive parts. SpecError if it does not divide."""
        positions, samples = self.share(step, rank, world_size)
        if len(positions) % accumulation:
            raise SpecError(
                f"gradient_accumulation_steps: {len(positions)} samples a worker do not divide by {accumulation}"
            )
        size = len(positions) // accumulation
        return [(positions[at : at + size], samples[at : at + size]) for at in range(0, len(positions), size)]


@lru_cache(maxsize=2)  # the epoch under way and the one that is read ahead
def permutation(seed: int, epoch: int, num_samples: int) -> Indices:
    """Order of all samples in that epoch (from 0)."""
    order: Indices = keyed(Domain.ORDER, seed, epoch).permutation(num_samples)
    order.flags.writeable = False
    return order
