"""The sample order: a pure function of (seed, epoch, index).

Seeking costs nothing, and since ranks cut the global batch into equal consecutive parts, the same global batch is
seen by 1, 2, 4 or 8 of them.
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
    """Which samples each step sees: every epoch a new permutation, its incomplete last batch left out."""

    seed: int
    num_samples: int
    global_batch: int

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch:
            raise SpecError(
                f"batch_size: a global batch of {self.global_batch} is larger than the {self.num_samples} samples",
                hint="lower batch_size or use fewer workers",
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_samples // self.global_batch

    def global_indices(self, step: int) -> Indices:
        """Samples of the step with this index (from 0), in order; shape (global_batch,)."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.global_batch
        return permutation(self.seed, epoch, self.num_samples)[start : start + self.global_batch]

    def share(self, step: int, rank: int, world_size: int) -> tuple[range, Indices]:
        """Positions in the global batch that `rank` computes, and the samples there."""
        if self.global_batch % world_size:
            raise SpecError(f"batch_size: {self.global_batch} samples do not divide by {world_size} workers")
        size = self.global_batch // world_size
        positions = range(rank * size, (rank + 1) * size)
        return positions, self.global_indices(step)[positions.start : positions.stop]


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_samples: int) -> Indices:
    """Order of all samples in that epoch (from 0)."""
    order: Indices = keyed(Domain.ORDER, seed, epoch).permutation(num_samples)
    order.flags.writeable = False
    return order
