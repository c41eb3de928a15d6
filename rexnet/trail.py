"""The run's resume certificate as it grows: the part of it that no committed checkpoint holds yet."""

from __future__ import annotations

import threading

from jobs.certificate import START, Entry, extend


class Trail:
    """Goes on from the certificate `digest`, that of the checkpoint which the attempt started from."""

    def __init__(self, digest: str = START) -> None:
        self.digest = digest
        self._pending: list[Entry] = []
        self._lock = threading.Lock()  # the checkpoint thread says what is committed

    def extend(self, step: int, samples: bytes, loss: float, random_state: bytes) -> None:
        """One step further; arguments as `jobs.certificate.extend` has them."""
        entry = extend(self.digest, step=step, samples=samples, loss=loss, random_state=random_state)
        self.digest = entry.digest
        with self._lock:
            self._pending.append(entry)

    def pending(self) -> list[Entry]:
        """The entries that no committed manifest covers yet."""
        with self._lock:
            return list(self._pending)

    def committed(self, step: int) -> None:
        """A manifest covers all entries up to `step`."""
        with self._lock:
            self._pending = [entry for entry in self._pending if entry.step > step]
