"""How much a rank works for each step: CPU time, and time in which it could have run but had to wait for a CPU.

In data-parallel training all ranks' steps take equally long on the clock, since the fast ones wait for the slow one in
the all-reduce. Waiting takes no CPU, so what sets the slow one apart is this sum: a slower or throttled core, or a
neighbour on its cores, raises it there. What it waits for its data, the rank says itself, and is added; how long an
accelerator computes is not seen.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

_LAST = 30  # looks, one a second
_LEAST = 15  # before anything is said: rank 0 has more to do in its first steps (tracking, the first checkpoint)


def work_seconds(pid: int) -> float | None:
    """Seconds of CPU time and of waiting for a CPU of all threads that live now; None once the process has ended.

    Source: /proc/PID/task/TID/schedstat (nanoseconds on a CPU, nanoseconds on a run queue).
    """
    total = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            try:
                on_cpu, waiting, _ = (thread / "schedstat").read_text().split()
            except FileNotFoundError:
                continue  # a thread that ended meanwhile
            total += int(on_cpu) + int(waiting)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return total / 1e9


class WorkMeter:
    """Work per step of one rank, over its last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=_LAST)  # step, work
        self._ended_s = 0.0  # accounts that threads took along

    def add(self, step: int, work_s: float) -> None:
        """What was done up to the end of that step. A thread that ends takes its account along: then nothing was done
        since the look before."""
        if self._seen and step < self._seen[-1][0]:
            self._seen.clear()
        if self._seen:
            self._ended_s += max(0.0, self._seen[-1][1] - self._ended_s - work_s)
        self._seen.append((step, work_s + self._ended_s))

    def clear(self) -> None:
        """What was seen was no training: compiling, validating."""
        self._seen.clear()

    def per_step(self) -> float | None:
        """Seconds a step; None before there were enough looks, and steps, to tell."""
        if len(self._seen) < _LEAST or self._seen[-1][0] == self._seen[0][0]:
            return None
        return (self._seen[-1][1] - self._seen[0][1]) / (self._seen[-1][0] - self._seen[0][0])
