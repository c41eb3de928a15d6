"""The rank shims of one node, as its supervisor knows them: who said hello, and who is gone without a word.

A process id is given to another process once its owner has ended; with the start time it names one for good. So nobody
else ever gets a signal that was meant for a shim.
"""

from __future__ import annotations

import os
import signal

from cluster.node.processes import is_alive, started_at


class Shims:
    """Rank -> its shim; -1 for that of msrun's scheduler process."""

    def __init__(self) -> None:
        # rank -> process id and start time, which is None if it was gone by then
        self._known: dict[int, tuple[int, int | None]] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def hello(self, rank: int, pid: int) -> None:
        self._known[rank] = (pid, started_at(pid))

    def alive(self) -> dict[int, int]:
        """Rank -> process id of the shims that have not ended (a zombie has)."""
        return {rank: pid for rank, (pid, started) in self._known.items() if _is_still(pid, started)}

    def gone(self) -> dict[int, int]:
        """The others."""
        alive = self.alive()
        return {rank: pid for rank, (pid, _) in self._known.items() if rank not in alive}

    def terminate(self, rank: int) -> None:
        """SIGTERM, if it is there."""
        pid, started = self._known.get(rank, (0, None))
        if _is_still(pid, started):
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                return  # it ended by itself; its outcome is on its way


def _is_still(pid: int, started: int | None) -> bool:
    return started is not None and started_at(pid) == started and is_alive(pid)
