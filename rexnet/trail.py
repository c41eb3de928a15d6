"""The run's resume certificate as it grows: the part of it that no committed checkpoint holds yet."""

from __future__ import annotations

from jobs.certificate import START, Entry, extend
from rexnet.backlog import Backlog


class Trail(Backlog[Entry]):
    """Goes on from the certificate `digest`, that of the checkpoint which the attempt started from."""

    def __init__(self, digest: str = START) -> None:
        super().__init__()
        self.digest = digest

    def extend(self, step: int, samples: bytes, loss: float, random_state: bytes) -> None:
        """One step further; arguments as `jobs.certificate.extend` has them."""
        entry = extend(self.digest, step=step, samples=samples, loss=loss, random_state=random_state)
        self.digest = entry.digest
        self._append([entry])
