"""Which rank holds the others up: it works longer for each step than the rest do. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from jobs.contract import Phase

TIMES = 1.3  # as much work a step as the median of the others
LEAST_S = 0.005  # and at least so much more: below that it is noise


def straggler(ranks: Sequence[dict[str, Any]], hosts: Sequence[str], workers_per_node: int) -> dict[str, Any] | None:
    """{"rank", "host", "work_s", "others_s"} of the rank that works longest a step, if it stands out; else None.

    Args:
        ranks: the newest heartbeats, with the supervisor's "work_s" (see `cluster.node.work`).
        hosts: by node rank.
    """
    work = {beat["rank"]: beat["work_s"] for beat in ranks if beat.get("work_s") and beat["phase"] == Phase.TRAINING}
    if len(work) < 2:
        return None
    slow = max(work, key=lambda rank: float(work[rank]))
    others_s = statistics.median(seconds for rank, seconds in work.items() if rank != slow)
    if work[slow] < TIMES * others_s or work[slow] - others_s < LEAST_S:
        return None
    host = hosts[slow // workers_per_node]
    return {"rank": slow, "host": host, "work_s": round(work[slow], 4), "others_s": round(others_s, 4)}
