"""Augmentation and dropout masks: random numbers are a pure function of (seed, epoch or step, sample or position)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rexnet.data.keyed import Domain, keyed

Array = np.ndarray[Any, Any]
# Channel means and deviations of ImageNet, in units of a pixel's 0..255, as MindCV normalises.
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255


def augment(image: Array, *, seed: int, epoch: int, sample: int, shift_pixels: int, hflip: float) -> Array:
    """A moved and perhaps mirrored copy of `image` (h, w, 3) uint8; what moves in is black."""
    if not shift_pixels and not hflip:
        return image
    draw = keyed(Domain.AUGMENT, seed, epoch, sample)
    down, right = draw.integers(-shift_pixels, shift_pixels, size=2, endpoint=True)
    if draw.random() < hflip:
        image = image[:, ::-1]
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    target = moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    target[...] = image[max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
    return moved


def normalise(images: Array) -> Array:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) float32, contiguous."""
    return np.ascontiguousarray(((images.astype(np.float32) - MEAN) / STD).transpose(0, 3, 1, 2))


def dropout_mask(*, seed: int, step: int, positions: Sequence[int], num_features: int, rate: float) -> Array:
    """0 with probability `rate`, else 1 / (1 - rate): (len(positions), num_features) float32.

    One row per position in the global batch, so that the mask of a sample does not depend on who computes it.
    """
    if not rate:
        return np.ones((len(positions), num_features), np.float32)
    rows = [keyed(Domain.DROPOUT, seed, step, position).random(num_features, np.float32) for position in positions]
    kept: Array = np.stack(rows) >= rate
    return kept.astype(np.float32) / np.float32(1 - rate)
