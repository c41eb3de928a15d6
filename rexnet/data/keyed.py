"""Random numbers by key: the same key gives the same numbers, in any process, on any rank, in any order of asking."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_BLOCK = 32  # an augmented image takes about twenty numbers


class Domain(IntEnum):
    """What the numbers are for; the numbers of two domains have nothing to do with each other. Never renumbered."""

    ORDER = 1
    AUGMENT = 2
    DROPOUT = 3
    PATH = 4
    MIXUP = 5


def keyed(domain: Domain, seed: int, major: int, minor: int = 0) -> np.random.Generator:
    """A generator of its own for (domain, seed, major, minor), all below 2**63.

    Philox-4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the seed is its key; what is
    asked for is its counter, whose lowest word is left to the draws.
    """
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, minor, major, int(domain)]))


class Draws:
    """Scalars out of one generator, drawn in blocks: a call for each would cost more than the arithmetic with it."""

    __slots__ = ("_block", "generator")

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self._block: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A real number in [low, high)."""
        if not self._block:
            self._block = self.generator.random(_BLOCK).tolist()
        return low + (high - low) * self._block.pop()

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def normal(self, mean: float, deviation: float) -> float:
        """A number of the normal distribution."""
        return mean + deviation * float(self.generator.standard_normal())
