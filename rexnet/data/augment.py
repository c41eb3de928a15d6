"""What is done to an image on its way into a batch: the transform of training and that of validation.

Both end in normalised channels, written straight into the batch's array. Their order is that of MindCV's
`transforms_imagenet_train` and `transforms_imagenet_eval`.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import cv2
import numpy as np

from rexnet.data import pixels
from rexnet.data.crop import centre_crop, random_crop
from rexnet.data.keyed import Draws
from rexnet.data.randaug import parse_randaug
from rexnet.recipe import Recipe

Array = np.ndarray[Any, Any]


class Transform(Protocol):
    """From encoded image to network input, in two halves."""

    @property
    def size(self) -> int:
        """Pixels of a side of what comes out."""

    @property
    def fixed_load(self) -> bool:
        """Whether `load` gives the same for an image each time and draws nothing, so that it may be kept."""

    def load(self, data: bytes, draws: Draws) -> Array:
        """(size, size, 3) uint8; not to be written to. CorruptImage if the bytes are no whole image."""

    def finish(self, image: Array, draws: Draws, out: Array) -> None:
        """Augment what `load` gave and write it, normalised, to `out`, (3, size, size) float32 and contiguous."""


class TrainTransform:
    """Random crop, flips, RandAugment or colour jitter, shift, normalisation, random erasing.

    SpecError if the recipe's `auto_augment` is not supported.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.size = recipe.image_resize
        self.fixed_load = recipe.scale == (1, 1)
        self._normalise = Normalise(recipe.mean, recipe.std)
        self._policy = (
            parse_randaug(recipe.auto_augment, mean=recipe.mean, interpolation=recipe.interpolation)
            if recipe.auto_augment is not None
            else None
        )

    def load(self, data: bytes, draws: Draws) -> Array:
        recipe = self._recipe
        return random_crop(
            data, size=self.size, scale=recipe.scale, ratio=recipe.ratio, interpolation=recipe.interpolation,
            draws=draws,
        )  # fmt: skip

    def finish(self, image: Array, draws: Draws, out: Array) -> None:
        recipe = self._recipe
        if recipe.hflip and draws.uniform() < recipe.hflip:
            image = cv2.flip(image, 1)
        if recipe.vflip and draws.uniform() < recipe.vflip:
            image = cv2.flip(image, 0)
        if self._policy is not None:
            image = self._policy(image, draws)
        elif recipe.color_jitter:
            image = jitter(image, recipe.color_jitter, draws)
        if recipe.shift_pixels:
            right, down = (draws.integer(-recipe.shift_pixels, recipe.shift_pixels) for _ in range(2))
            image = pixels.shift(image, right, down)
        self._normalise(image, out)
        if recipe.re_prob and draws.uniform() < recipe.re_prob:
            erase(
                out, draws, scale=recipe.re_scale, ratio=recipe.re_ratio, value=recipe.re_value,
                attempts=recipe.re_max_attempts,
            )  # fmt: skip


class EvalTransform:
    """The shorter side resized to floor(image_resize / crop_pct), the centre of it, normalised."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.size = recipe.image_resize
        self.fixed_load = True
        self._normalise = Normalise(recipe.mean, recipe.std)

    def load(self, data: bytes, draws: Draws) -> Array:
        recipe = self._recipe
        return centre_crop(data, size=self.size, crop_pct=recipe.crop_pct, interpolation=recipe.interpolation)

    def finish(self, image: Array, draws: Draws, out: Array) -> None:
        self._normalise(image, out)


class Normalise:
    """(value - mean) / std a channel, through a table of its 256 results."""

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        values = np.arange(256, dtype=np.float32)
        self._tables = [(values - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]

    def __call__(self, image: Array, out: Array) -> None:
        """Write (h, w, 3) uint8 to (3, h, w) float32, contiguous."""
        for channel, table, target in zip(cv2.split(image), self._tables, out, strict=True):
            cv2.LUT(channel, table, dst=target)


def jitter(image: Array, strength: float, draws: Draws) -> Array:
    """Brightness, contrast and saturation, in random order, each by a factor within `strength` of 1."""
    operations = [pixels.brightness, pixels.contrast, pixels.colour]
    while operations:
        operation = operations.pop(draws.integer(0, len(operations) - 1))
        image = operation(image, draws.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def erase(
    out: Array, draws: Draws, *, scale: tuple[float, float], ratio: tuple[float, float], value: str | int, attempts: int
) -> None:
    """Fill a random box of `out`, (c, h, w) float32, in place: Zhong et al., "Random Erasing", arXiv 1708.04896.

    With normal noise a pixel and channel if `value` is "random", else with `value`. The box has `scale` times the
    area and width over height `ratio`; after `attempts` that do not fit nothing is erased.
    """
    height, width = out.shape[1:]
    for _ in range(attempts):
        area = height * width * draws.uniform(*scale)
        aspect = draws.uniform(*ratio)
        box_width = round(math.sqrt(area * aspect))
        box_height = round(box_width / aspect)
        if box_height < height and box_width < width:
            top, left = draws.integer(0, height - box_height), draws.integer(0, width - box_width)
            box = out[:, top : top + box_height, left : left + box_width]
            box[...] = draws.generator.standard_normal(box.shape, np.float32) if value == "random" else value
            return
