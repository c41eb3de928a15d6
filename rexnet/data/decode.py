"""Encoded images to RGB pixels, by OpenCV's libjpeg-turbo and libpng; Pillow decodes what OpenCV cannot.

As in MindSpore's decoder, gray becomes RGB, alpha is dropped, and a camera's note on orientation is ignored.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

cv2.setNumThreads(1)  # whole images go to threads; a pool inside each call would fight over the same CPUs
cv2.setLogLevel(0)  # a corrupt image is reported by name, by us

_COLOR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# OpenCV lets libjpeg leave out the high frequencies, which costs a half down to a quarter of a full decoding.
_REDUCED = {
    1: _COLOR,
    2: _COLOR | cv2.IMREAD_REDUCED_COLOR_2,
    4: _COLOR | cv2.IMREAD_REDUCED_COLOR_4,
    8: _COLOR | cv2.IMREAD_REDUCED_COLOR_8,
}
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG and DAC
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


class CorruptImage(ValueError):
    """Bytes that are no whole image of a kind we know; says why."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a JPEG's header says of it: size in pixels, and components (1 gray, 3 colour, 4 CMYK)."""

    height: int
    width: int
    components: int


def jpeg_frame(data: bytes) -> Frame | None:
    """The frame header of a JPEG; None if this is no JPEG, or has no such header."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    at, end = 2, len(data) - 10
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _FRAMES:
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            return Frame(height, width, components) if height and width else None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def decode(data: bytes, *, reduce: int = 1) -> Array:
    """(h, w, 3) uint8, RGB. A colour or gray JPEG is scaled down by `reduce` (1, 2, 4, 8) while it is decoded.

    CorruptImage if the bytes are not a whole image.
    """
    frame = jpeg_frame(data)
    if data and (frame is None or frame.components != 4):
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduce if frame else 1])
        except cv2.error:
            image = None  # Pillow has the last word
        if image is not None:
            return image
    try:
        with Image.open(io.BytesIO(data)) as file:
            return np.asarray(file.convert("RGB"))
    except _DECODING_ERRORS as error:
        raise CorruptImage(str(error) or type(error).__name__) from error
