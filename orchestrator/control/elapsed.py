"""How long ago a moment of the store was, by a clock that does not jump."""

from __future__ import annotations

from collections.abc import Callable


class Elapsed:
    """The store knows moments by the wall clock, which may be set forward or back while jobs run: no limit follows it.

    The wall clock is believed once for each moment, when it is first asked about; from then on the steady one counts.
    """

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float]) -> None:
        self._clock, self._steady = clock, steady
        self._began: dict[tuple[str, int], dict[float, float]] = {}  # of an attempt: moment -> steady time

    def since(self, job: str, attempt: int, moment: float) -> float:
        """Seconds since that moment of the attempt; at least 0."""
        began = self._began.setdefault((job, attempt), {})
        if moment not in began:
            began[moment] = self._steady() - max(0.0, self._clock() - moment)
        return self._steady() - began[moment]

    def forget(self, job: str, attempt: int) -> None:
        """The attempt has ended."""
        self._began.pop((job, attempt), None)
