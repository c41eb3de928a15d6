"""Operations on (h, w, 3) uint8 images: each returns a new image and leaves its argument as it is.

What each computes is what MindSpore's operator of that name does on the CPU (tests hold them side by side); Pillow's
ImageOps and ImageEnhance differ from those by rounding alone, but for `equalize`.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from rexnet.data.slide import num_runs, slide_rows

Array = np.ndarray[Any, Any]
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_VALUES = np.arange(256, dtype=np.float32)


def auto_contrast(image: Array) -> Array:
    """Each channel stretched linearly to 0..255."""
    table = np.empty((1, 256, 3), np.uint8)
    for i, channel in enumerate(cv2.split(image)):
        low, high, _, _ = cv2.minMaxLoc(channel)
        scale = np.float32(255 / (high - low)) if high > low else np.float32(1)
        table[0, :, i] = np.clip((_VALUES - np.float32(low if high > low else 0)) * scale, 0, 255)
    return cv2.LUT(image, table)


def equalize(image: Array) -> Array:
    """Each channel's histogram made flat."""
    return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(image)])


def invert(image: Array) -> Array:
    return cv2.bitwise_not(image)


def solarize(image: Array, threshold: int) -> Array:
    """Values from `threshold` on inverted."""
    values = np.arange(256)
    return cv2.LUT(image, np.where(values >= threshold, 255 - values, values).astype(np.uint8))


def posterize(image: Array, bits: int) -> Array:
    """The `bits` highest bits of each value kept."""
    return np.bitwise_and(image, np.uint8(256 - (1 << (8 - bits))))


def brightness(image: Array, factor: float) -> Array:
    """Blended with black: 0 is black, 1 the image, above 1 brighter."""
    return cv2.convertScaleAbs(image, alpha=factor)


def contrast(image: Array, factor: float) -> Array:
    """Blended with the mean of its gray version: 0 is that gray, 1 the image."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.addWeighted(image, factor, image, 0, mean * (1 - factor))


def colour(image: Array, factor: float) -> Array:
    """Blended with its gray version: 0 is gray, 1 the image, above 1 more saturated."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, gray, 1 - factor, 0)


def sharpness(image: Array, factor: float) -> Array:
    """Blended with its smoothed version, the rim left as it is: 0 is smooth, 1 the image, above 1 sharper."""
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    for rim in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        smooth[rim] = image[rim]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)


def rotate(image: Array, degrees: float, interpolation: int, fill: tuple[int, int, int]) -> Array:
    """Turned counter-clockwise about its centre; what comes in is `fill` (which MindSpore's operator takes as BGR)."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return _warped(image, matrix, interpolation, fill)


def shear_x(image: Array, degrees: float, interpolation: int, fill: tuple[int, int, int]) -> Array:
    """Rows moved to the right in proportion to their distance below the centre."""
    slope, centre = math.tan(math.radians(degrees)), (image.shape[0] - 1) / 2
    offsets = slope * (np.arange(image.shape[0]) - centre)
    if interpolation == cv2.INTER_CUBIC and num_runs(offsets) < image.shape[0] / 3:
        return slide_rows(image, offsets, fill)
    return _warped(image, np.array([[1, slope, -slope * centre], [0, 1, 0]]), interpolation, fill)


def shear_y(image: Array, degrees: float, interpolation: int, fill: tuple[int, int, int]) -> Array:
    """Columns moved down in proportion to their distance right of the centre."""
    return cv2.transpose(shear_x(cv2.transpose(image), degrees, interpolation, fill))


def translate_x(image: Array, right: float, interpolation: int, fill: tuple[int, int, int]) -> Array:
    """Moved to the right by that number of pixels, which need not be whole."""
    if interpolation == cv2.INTER_CUBIC:
        return slide_rows(image, np.full(image.shape[0], right), fill)
    return _warped(image, np.array([[1, 0, right], [0, 1, 0]], np.float64), interpolation, fill)


def translate_y(image: Array, down: float, interpolation: int, fill: tuple[int, int, int]) -> Array:
    """Moved down by that number of pixels, which need not be whole."""
    return cv2.transpose(translate_x(cv2.transpose(image), down, interpolation, fill))


def shift(image: Array, right: int, down: int) -> Array:
    """Moved by whole pixels; what comes in is black."""
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    target = moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    target[...] = image[max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
    return moved


def _warped(image: Array, forward: Array, interpolation: int, fill: tuple[int, int, int]) -> Array:
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image, forward, (width, height), flags=interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )
