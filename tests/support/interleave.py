"""Every order in which two threads of real code can reach a store: a small stateless model checker.

Each thread runs until its next request to the store, and waits there for its turn. `every_order` runs the pair again
and again, each time with another sequence of turns, until all sequences have been run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.stores import Wrapped


class _Turns:
    """Lets one of two threads go on at a time: by `prefix`, then the first that still wants to."""

    def __init__(self, prefix: list[int]) -> None:
        self._prefix = prefix
        self._changed = threading.Condition()
        self._waiting = {0: False, 1: False}
        self._done = {0: False, 1: False}
        self.taken: list[tuple[int, bool]] = []  # whose turn, and whether the other one could have had it
        self._current: int | None = None

    def wait(self, who: int) -> None:
        with self._changed:
            self._waiting[who] = True
            if self._current == who:
                self._current = None
            self._choose()
            assert self._changed.wait_for(lambda: self._current == who, timeout=60), "a turn never came"
            self._waiting[who] = False

    def finish(self, who: int) -> None:
        with self._changed:
            self._done[who] = True
            if self._current == who:
                self._current = None
            self._choose()

    def _choose(self) -> None:
        if self._current is not None or any(not (self._waiting[i] or self._done[i]) for i in (0, 1)):
            return  # one is running still
        able = [i for i in (0, 1) if not self._done[i]]
        if not able:
            return
        number = len(self.taken)
        wanted = self._prefix[number] if number < len(self._prefix) else able[0]
        self._current = wanted if wanted in able else able[0]
        self.taken.append((self._current, len(able) == 2))
        self._changed.notify_all()


class Gated(Wrapped):
    """Waits for its turn before the requests that `gates` picks."""

    def __init__(self, store: Any, gates: Callable[[str, str], bool]) -> None:
        super().__init__(store)
        self._gates = gates
        self.turn: Callable[[], None] = lambda: None

    def before(self, operation: str, key: str) -> None:
        if self._gates(operation, key):
            self.turn()


def every_order(make: Callable[[], tuple[Gated, Callable[[], Any], Gated, Callable[[], Any]]]) -> Iterator[list[Any]]:
    """The results (value or exception) of both actions, for each order of their gated requests."""
    prefixes: list[list[int]] = [[]]
    while prefixes:
        prefix = prefixes.pop()
        first_store, first, second_store, second = make()
        turns = _Turns(prefix)
        results: list[Any] = [None, None]

        def run(who: int, action: Callable[[], Any], turns: _Turns = turns, results: list[Any] = results) -> None:
            try:
                results[who] = action()
            except Exception as error:
                results[who] = error
            finally:
                turns.finish(who)

        first_store.turn, second_store.turn = (lambda t=turns: t.wait(0)), (lambda t=turns: t.wait(1))  # type: ignore[misc]
        threads = [threading.Thread(target=run, args=(i, action)) for i, action in enumerate((first, second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = [who for who, _ in turns.taken]
        for at in range(len(prefix), len(taken)):
            if turns.taken[at][1]:
                prefixes.append([*taken[:at], 1 - taken[at]])
        yield results
