"""The agent's own watch over its node's lease, in case that its supervisor, which ends its tree by itself, cannot."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.lease import boottime

LATE_S = 1.0  # what a supervisor has to end its tree when the lease is over; part of `cluster.lease.MARGIN_S`
_LOOK_S = 0.25


def end_overdue(
    until: Callable[[], float | None],
    ended: Callable[[], bool],
    end: Callable[[], object],
    *,
    clock: Callable[[], float] = boottime,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for the attempt's end here; `end` what is left a second after the lease, again until there is an end.

    Args:
        until: when the lease runs out, by `clock`; None before its first renewal. A renewal moves it.
        ended: whether the record of the end is there.

    Again, because an agent that was stopped may be on its way to start something.
    """
    while not ended():
        limit = until()
        if limit is not None and clock() > limit + LATE_S:
            end()
        sleep(_LOOK_S)
