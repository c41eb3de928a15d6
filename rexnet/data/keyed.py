"""Random numbers by key: the same key gives the same numbers, in any process, on any rank, in any order of asking."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Domain(IntEnum):
    """What the numbers are for; the numbers of two domains have nothing to do with each other."""

    ORDER = 1
    AUGMENT = 2
    DROPOUT = 3


def keyed(domain: Domain, seed: int, major: int, minor: int = 0) -> np.random.Generator:
    """A generator of its own for (domain, seed, major, minor), all below 2**63.

    Philox-4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the seed is its key; what is
    asked for is its counter, whose lowest word is left to the draws.
    """
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, minor, major, int(domain)]))
