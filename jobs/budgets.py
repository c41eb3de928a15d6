"""Why attempts end, what each cause may cost, and how long to wait before the next try."""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel, ConfigDict, Field


class Cause(str, Enum):
    """Why an attempt ended. One word each in events, summaries and JSON."""

    DONE = "done"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    TIME_LIMIT = "time_limit"
    CONFIG = "config"  # exit 64: the same input will fail again
    NO_REQUEUE = "no_requeue"  # exit 93
    NODE_LOST = "node_lost"
    INFRASTRUCTURE = "infrastructure"  # store, network, tracking, Ray, HCCL: not the program's doing
    CRASH = "crash"
    HANG = "hang"


class Retry(BaseModel):
    """How often each cause may end an attempt before the job has failed; null is without limit.

    `no_progress` counts crashes and hangs in a row without a newer checkpoint than the one the attempt started from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    preempted: int | None = Field(default=None, ge=0)
    node_lost: int | None = Field(default=100, ge=0)
    infrastructure: int | None = Field(default=20, ge=0)
    crash: int | None = Field(default=3, ge=0)
    hang: int | None = Field(default=3, ge=0)
    no_progress: int | None = Field(default=3, ge=0)
    backoff_s: float = Field(default=2.0, ge=0, description="seconds before the first retry; doubles each time")
    backoff_max_s: float = Field(default=300.0, ge=0)

    def budget(self, cause: Cause) -> int | None:
        """How many attempts this cause may end; 0 for causes that are final."""
        budgets = {
            Cause.PREEMPTED: self.preempted,
            Cause.NODE_LOST: self.node_lost,
            Cause.INFRASTRUCTURE: self.infrastructure,
            Cause.CRASH: self.crash,
            Cause.HANG: self.hang,
        }
        return budgets.get(cause, 0)

    def backoff(self, failures: int) -> float:
        """Seconds to wait after the `failures`-th failure in a row (from 1)."""
        return min(self.backoff_s * 2.0 ** min(failures - 1, 30), self.backoff_max_s)
