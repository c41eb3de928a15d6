"""From an encoded image to a square of pixels: the random crop of training, the centre crop of validation.

The boxes are those of MindSpore's RandomCropDecodeResize, Resize and CenterCrop, which MindCV uses.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from rexnet.data.decode import decode, jpeg_frame
from rexnet.data.keyed import Draws

Array = np.ndarray[Any, Any]
INTERPOLATION = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_ATTEMPTS = 10


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws) -> Box:
    """A box of `scale` times the image's area and of `ratio` (width over height, uniform in its logarithm).

    After ten that do not fit, the largest one in the centre that keeps to `ratio` (Szegedy et al., arXiv 1409.4842,
    as it is commonly implemented). `scale` (1, 1) is that one at once.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS if scale != (1, 1) else 0):
        area = height * width * draws.uniform(*scale)
        aspect = math.exp(draws.uniform(low, high))
        box_width = max(round(math.sqrt(area * aspect)), 1)
        box_height = max(round(box_width / aspect), 1)
        if box_width <= width and box_height <= height:
            left, top = draws.integer(0, width - box_width), draws.integer(0, height - box_height)
            return Box(top, left, box_height, box_width)
    box_width = min(width, max(round(height * ratio[1]), 1))
    box_height = min(height, max(round(width / ratio[0]), 1))
    return Box(round((height - box_height) / 2), round((width - box_width) / 2), box_height, box_width)


def random_crop(
    data: bytes, *, size: int, scale: tuple[float, float], ratio: tuple[float, float], interpolation: str, draws: Draws
) -> Array:
    """(size, size, 3) uint8: a random box of the image, resized. CorruptImage if the bytes are no whole image.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the box stays at least `size` pixels high and wide.
    """
    frame = jpeg_frame(data)
    if frame is None:
        image = decode(data)
        box = random_box(image.shape[0], image.shape[1], scale, ratio, draws)
    else:
        box = random_box(frame.height, frame.width, scale, ratio, draws)
        reduce = next((by for by in (8, 4, 2) if min(box.height, box.width) >= by * size), 1)
        image = decode(data, reduce=reduce)
        if image.shape[0] != frame.height:
            box = _scaled(box, image.shape[0] / frame.height, image.shape[1] / frame.width)
    return _resized(image[box.top : box.top + box.height, box.left : box.left + box.width], size, size, interpolation)


def centre_crop(data: bytes, *, size: int, crop_pct: float, interpolation: str) -> Array:
    """(size, size, 3) uint8: the shorter side resized to floor(size / crop_pct), then the centre.

    CorruptImage if the bytes are no whole image. Always decoded in full: published accuracies were measured so.
    """
    image = decode(data)
    height, width = image.shape[:2]
    shorter = math.floor(size / crop_pct)
    if height <= width:
        new_height, new_width = shorter, int(shorter * width / height)
    else:
        new_height, new_width = int(shorter * height / width), shorter
    image = _resized(image, new_height, new_width, interpolation)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def _scaled(box: Box, down: float, across: float) -> Box:
    """The box in an image whose height and width are these shares of the original's."""
    top, left = int(box.top * down), int(box.left * across)
    return Box(top, left, max(round(box.height * down), 1), max(round(box.width * across), 1))


def _resized(image: Array, height: int, width: int, interpolation: str) -> Array:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    return cv2.resize(image, (width, height), interpolation=INTERPOLATION[interpolation])
