"""The samples of one split on their way into batches: read, decoded, transformed; corrupt ones counted and named."""

from __future__ import annotations

import logging
from threading import Lock
from typing import Any

import numpy as np

from jobs.errors import SpecError
from rexnet.data.augment import Transform
from rexnet.data.decode import CorruptImage
from rexnet.data.folder import Source
from rexnet.data.keyed import Domain, Draws, keyed

Array = np.ndarray[Any, Any]
KEEP_BYTES = 256 << 20  # a set whose loaded images take no more than this together stays in memory
_NAMED = 10

log = logging.getLogger("rexnet.data")


class Samples:
    """Reads samples of `source` through `transform`, from any number of threads.

    `corrupt` names those that were found to be no whole image, and why. More of them than `max_corrupt` (a share of
    the split) are a SpecError that lists them. A read that fails (OSError) is no evidence of that and is passed on.
    """

    def __init__(self, source: Source, transform: Transform, *, seed: int, max_corrupt: float) -> None:
        self.source, self.transform = source, transform
        self.keeps = transform.fixed_load and len(source) * 3 * transform.size**2 <= KEEP_BYTES
        self._seed, self._budget = seed, int(max_corrupt * len(source))
        self._kept: dict[int, Array] = {}
        self._skipped: dict[int, str] = {}
        self._lock = Lock()

    @property
    def corrupt(self) -> dict[str, str]:
        """Name and reason of each corrupt image met so far."""
        with self._lock:
            return {self.source.name(sample): reason for sample, reason in self._skipped.items()}

    def write(self, sample: int, epoch: int, out: Array) -> bool:
        """Write the sample as seen in that epoch to `out`, (3, size, size) float32; False if it is corrupt."""
        draws = Draws(keyed(Domain.AUGMENT, self._seed, epoch, sample))
        image = self._load(sample, draws)
        if image is None:
            return False
        self.transform.finish(image, draws, out)
        return True

    def write_readable(self, sample: int, epoch: int, out: Array) -> int:
        """The same, with the next higher number that is readable in the place of a corrupt one; returns which."""
        number = len(self.source)
        for step in range(number):
            candidate = (sample + step) % number
            if self.write(candidate, epoch, out):
                return candidate
        raise SpecError("data_dir: not one of the images can be read")

    def _load(self, sample: int, draws: Draws) -> Array | None:
        kept = self._kept.get(sample)
        if kept is not None:
            return kept
        if sample in self._skipped:
            self._check()
            return None
        try:
            image = self.transform.load(self.source.read(sample), draws)
        except CorruptImage as error:
            self._skip(sample, str(error))
            self._check()
            return None
        if self.keeps:
            self._kept[sample] = image
        return image

    def _skip(self, sample: int, reason: str) -> None:
        with self._lock:
            if sample not in self._skipped:
                self._skipped[sample] = reason
                log.warning("action=corrupt-image name=%s cause=%s", self.source.name(sample), reason)

    def _check(self) -> None:
        if len(self._skipped) > self._budget:
            corrupt = self.corrupt
            listed = "; ".join(f"{name}: {reason}" for name, reason in list(corrupt.items())[:_NAMED])
            raise SpecError(
                f"data_dir: {len(corrupt)} corrupt images are more than max_corrupt allows of {len(self.source)} "
                f"({self._budget}), the first of them {listed}",
                hint="repair or remove them, or raise max_corrupt",
            )
