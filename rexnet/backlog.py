"""What a run has recorded step by step and no committed checkpoint holds yet."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar


class OfStep(Protocol):
    """A record of one step."""

    @property
    def step(self) -> int: ...


T = TypeVar("T", bound=OfStep)


class Backlog(Generic[T]):
    """Records in the order in which they came; safe to use from the checkpoint's thread, which says what is through."""

    def __init__(self) -> None:
        self._pending: list[T] = []
        self._lock = threading.Lock()

    def pending(self) -> list[T]:
        """The records that no committed manifest covers yet."""
        with self._lock:
            return list(self._pending)

    def committed(self, step: int) -> None:
        """A manifest covers all records up to `step`."""
        with self._lock:
            self._pending = [record for record in self._pending if record.step > step]

    def _append(self, records: Iterable[T]) -> None:
        with self._lock:
            self._pending.extend(records)
