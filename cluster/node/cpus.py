"""Which CPUs an attempt gets on its node: a fixed-size set, disjoint from other attempts' while CPUs last.

The lock files are held by the supervisor, so the kernel gives the CPUs back when it ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path


class CpuClaim:
    """`count` CPUs of this node. Exclusive if that many are free; else shared, spread over all there are.

    A node may be given more slots than it has CPUs (a laptop that tries a two-worker job): sharing is then meant.
    """

    def __init__(self, count: int, *, directory: Path | None = None, available: set[int] | None = None) -> None:
        self._files: list[int] = []
        folder = directory or Path(tempfile.gettempdir()) / f"rexctl-cpus-{os.getuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        everywhere = sorted(available if available is not None else os.sched_getaffinity(0))
        mine: list[int] = []
        for cpu in everywhere:
            if len(mine) < count and self._lock(folder / f"cpu-{cpu}.lock"):
                mine.append(cpu)
        self.exclusive = len(mine) == count
        if not self.exclusive:
            self.release()
            mine = [everywhere[i % len(everywhere)] for i in range(count)]
        self.cpus = tuple(mine)

    def _lock(self, path: Path) -> bool:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._files.append(handle)
        return True

    def release(self) -> None:
        for handle in self._files:
            os.close(handle)
        self._files.clear()
