"""What the training step is given in the place of random layers: masks and mixing, pure functions of their keys.

A row belongs to a position in the global batch, so it does not depend on who computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rexnet.data.keyed import Domain, keyed

Array = np.ndarray[Any, Any]


def dropout_mask(*, seed: int, step: int, positions: Sequence[int], num_features: int, rate: float) -> Array:
    """0 with probability `rate`, else 1 / (1 - rate): (len(positions), num_features) float32."""
    if not rate:
        return np.ones((len(positions), num_features), np.float32)
    rows = [keyed(Domain.DROPOUT, seed, step, position).random(num_features, np.float32) for position in positions]
    kept: Array = np.stack(rows) >= rate
    return kept.astype(np.float32) / np.float32(1 - rate)


def path_mask(*, seed: int, step: int, positions: Sequence[int], rates: Sequence[float]) -> Array:
    """0 with the probability in `rates`, else 1 / (1 - rate), a column a block: (len(positions), len(rates)) float32.

    Drop path, or stochastic depth (Huang et al., 2016, arXiv 1603.09382), a sample at a time.
    """
    drop = np.asarray(rates, np.float32)
    if not drop.any():
        return np.ones((len(positions), len(drop)), np.float32)
    rows = [keyed(Domain.PATH, seed, step, position).random(len(drop), np.float32) for position in positions]
    kept: Array = np.stack(rows) >= drop
    return kept.astype(np.float32) / (1 - drop)


def mixup_lambda(*, seed: int, step: int, alpha: float, probability: float) -> float:
    """Weight of each image in its own place in that step, the rest being its neighbour's; 1 is no mixing.

    Beta(alpha, alpha) with `probability`: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412.
    """
    if not alpha:
        return 1.0
    generator = keyed(Domain.MIXUP, seed, step)
    mixes = generator.random() < probability
    return float(np.float32(generator.beta(alpha, alpha))) if mixes else 1.0


def mix_neighbours(images: Array, lam: float) -> None:
    """Mix images 0 and 1, 2 and 3, ... of an even number, in place: each keeps the share `lam` of itself."""
    own, other = np.float32(lam), np.float32(1) - np.float32(lam)
    for i in range(0, len(images), 2):
        first, second = images[i], images[i + 1]
        images[i], images[i + 1] = first * own + second * other, second * own + first * other
