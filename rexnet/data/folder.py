"""Where encoded images come from: an image folder in ImageNet's layout, `train/<class>/*` and `val/<class>/*`.

Reading is apart from decoding, so that another `Source` (shards on an object store) needs nothing but bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jobs.errors import SpecError

Array = np.ndarray[Any, Any]
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class Source(Protocol):
    """One split of a data set, its samples numbered from 0, the same on every machine. Safe to read from threads."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes by number."""

    @property
    def labels(self) -> Array:
        """Class of each sample: (len(self),) int32."""

    def __len__(self) -> int: ...

    def read(self, sample: int) -> bytes:
        """The encoded image. OSError if it cannot be had now, which says nothing of its content."""

    def name(self, sample: int) -> str:
        """What to call the sample in a message."""


class ImageFolder:
    """One split of a data set on disk. Classes and, within them, files are numbered by sorted name.

    Listing takes one pass over the directories and asks nothing of the files, so 1.28 million are listed in seconds.
    SpecError without a folder, without classes, without images, or with another number of classes than `num_classes`.
    """

    def __init__(self, data_dir: str, split: str, *, num_classes: int) -> None:
        if not data_dir:
            raise SpecError("data_dir: no data set is named", hint="say --data_dir DIR, with DIR/train and DIR/val")
        self._root = Path(data_dir) / split
        if not self._root.is_dir():
            raise SpecError(
                f"data_dir: there is no folder {self._root}", hint=f"expected is DIR/{split}/CLASS, an image a file"
            )
        self.classes = _names(self._root, directories=True)
        if not self.classes:
            raise SpecError(
                f"data_dir: data directory without classes: {self._root} has no folders",
                hint=f"expected is DIR/{split}/CLASS, an image a file",
            )
        if len(self.classes) != num_classes:
            raise SpecError(
                f"data_dir: {self._root} holds {len(self.classes)} classes and num_classes says {num_classes}",
                hint="set num_classes, or complete the data set",
            )
        members = [_names(self._root / name, directories=False) for name in self.classes]
        self.files = [file for files in members for file in files]
        if not self.files:
            raise SpecError(f"data_dir: {self._root} holds no images", hint=f"known are {', '.join(SUFFIXES)}")
        self.labels: Array = np.repeat(np.arange(num_classes, dtype=np.int32), [len(files) for files in members])

    def __len__(self) -> int:
        return len(self.files)

    def read(self, sample: int) -> bytes:
        return self.path(sample).read_bytes()

    def name(self, sample: int) -> str:
        return str(self.path(sample))

    def path(self, sample: int) -> Path:
        """The file of the sample."""
        return Path(self._root, self.classes[self.labels[sample]], self.files[sample])


def _names(folder: Path, *, directories: bool) -> list[str]:
    """Sorted names of the folders or of the images in `folder`; hidden ones are no part of a data set."""
    with os.scandir(folder) as entries:
        shown = (entry for entry in entries if not entry.name.startswith("."))
        if directories:
            return sorted(entry.name for entry in shown if entry.is_dir())
        return sorted(entry.name for entry in shown if entry.name.lower().endswith(SUFFIXES))
