"""An image folder in ImageNet's layout: `train/<class>/*`, `val/<class>/*`; classes are numbered by sorted name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from jobs.errors import SpecError

Array = np.ndarray[Any, Any]
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
KEEP_BYTES = 256 << 20  # decoded sets up to this size stay in memory
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class ImageFolder:
    """One split of a data set: `labels` (n,) int32 and square images of `size` pixels, by sample number.

    Sample numbers follow sorted paths, so they are the same on every machine that has the same files.
    """

    def __init__(self, data_dir: str, split: str, *, num_classes: int, size: int, interpolation: str) -> None:
        if not data_dir:
            raise SpecError("data_dir: no data set is named", hint="say --data_dir DIR, with DIR/train and DIR/val")
        root = Path(data_dir) / split
        if not root.is_dir():
            raise SpecError(
                f"data_dir: there is no folder {root}", hint="expected are DIR/train/CLASS and DIR/val/CLASS"
            )
        classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        if len(classes) != num_classes:
            raise SpecError(
                f"data_dir: {root} holds {len(classes)} classes and num_classes says {num_classes}",
                hint="set num_classes, or complete the data set",
            )
        found = [
            (path, number)
            for number, name in enumerate(classes)
            for path in sorted((root / name).iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        if not found:
            raise SpecError(f"data_dir: {root} holds no images", hint=f"known are {', '.join(sorted(SUFFIXES))}")
        self.classes = classes
        self.paths = [path for path, _ in found]
        self.labels = np.array([number for _, number in found], np.int32)
        self._size, self._filter = size, _FILTERS[interpolation]
        self._kept: dict[int, Array] | None = {} if len(found) * size * size * 3 <= KEEP_BYTES else None

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, sample: int) -> Array:
        """(size, size, 3) uint8; not to be written to. SpecError if the file is no image."""
        if self._kept is not None and sample in self._kept:
            return self._kept[sample]
        try:
            with Image.open(self.paths[sample]) as file:
                image = np.asarray(file.convert("RGB").resize((self._size, self._size), self._filter))
        except (UnidentifiedImageError, OSError) as error:
            raise SpecError(f"data_dir: {self.paths[sample]} cannot be read as an image: {error}") from error
        if self._kept is not None:
            self._kept[sample] = image
        return image
