"""Working ahead: threads prepare the values of the next steps while the caller uses that of the present one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Task = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    step: int
    value: T
    tasks: list[Future[None]]


class Ahead(Generic[T]):
    """Values by step. `plan(step)` gives an unfilled value at once, and the tasks that fill it.

    With threads, the tasks of up to `depth` following steps are under way while a value is in use; without, they run
    when the value is asked for. Which it is changes no value. Steps end before `stop`, if that is given.
    """

    def __init__(
        self, plan: Callable[[int], tuple[T, list[Task]]], *, num_threads: int, depth: int = 2, stop: int | None = None
    ) -> None:
        self._plan, self._depth, self._stop = plan, depth, stop
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="rexnet-data") if num_threads else None
        self._entries: deque[_Entry[T]] = deque()

    def get(self, step: int) -> T:
        """The filled value; raises what one of its tasks raised. Any step may be asked for: the next one is quick."""
        if self._pool is None:
            value, tasks = self._plan(step)
            for task in tasks:
                task()
            return value
        if self._entries and self._entries[0].step != step:
            self._forget()
        for following in range(step + len(self._entries), step + self._depth + 1):
            if self._stop is None or following < self._stop:
                value, tasks = self._plan(following)
                self._entries.append(_Entry(following, value, [self._pool.submit(task) for task in tasks]))
        entry = self._entries.popleft()
        try:
            for future in entry.tasks:
                future.result()
        except BaseException:
            self._forget()
            raise
        return entry.value

    def close(self) -> None:
        """End the threads; what they were preparing is dropped."""
        self._forget()
        if self._pool is not None:
            self._pool.shutdown()

    def _forget(self) -> None:
        for entry in self._entries:
            for future in entry.tasks:
                future.cancel()
        self._entries.clear()
