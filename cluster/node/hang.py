"""When a rank hangs: it makes no step for much longer than its own steps ever took. Pure: times are handed in.

While a rank trains only a new step counts: a checkpoint thread may go on telling the news of a loop that stands still.
In other phases (compiling, validating, draining) any heartbeat counts, and the patience is a fixed one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from jobs.contract import Phase

LEAST_S = 60.0  # patience with a training rank, however short its steps are
TIMES_LONGEST = 10.0  # and how many times the longest of its last steps
QUIET_PHASE_S = 1800.0  # MindSpore compiles ReXNet for 8 minutes on Ascend (MindCV's figure); larger models for longer
_LAST_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """A rank that was given up."""

    rank: int
    phase: str
    step: int
    silent_s: float
    patience_s: float

    def __str__(self) -> str:
        what = f"made no step for {self.silent_s:.0f} s after step {self.step}"
        if self.phase != Phase.TRAINING.value:
            what = f"said nothing for {self.silent_s:.0f} s while {self.phase}"
        return f"rank {self.rank} {what} (patience {self.patience_s:.0f} s)"


@dataclass(slots=True)
class _Rank:
    phase: str
    step: int
    since: float  # of the last sign of progress
    lasted: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST_STEPS))  # seconds from step to step


class HangWatch:
    """Watches the ranks of one node. `fixed_s`, if given, is the patience with a rank that trains."""

    def __init__(self, fixed_s: float | None = None) -> None:
        self._fixed_s = fixed_s
        self._ranks: dict[int, _Rank] = {}

    def heard(self, beat: dict[str, Any], now: float) -> None:
        """A rank's heartbeat, as it comes in. `now` must not jump: `time.monotonic`, or boottime."""
        rank, phase, step = int(beat["rank"]), str(beat["phase"]), int(beat["step"])
        known = self._ranks.get(rank)
        if known is None or phase != known.phase:
            self._ranks[rank] = _Rank(phase, step, now, known.lasted if known else deque(maxlen=_LAST_STEPS))
        elif step > known.step:
            known.lasted.append((now - known.since) / (step - known.step))
            known.step, known.since = step, now
        elif phase != Phase.TRAINING.value:
            known.since = now

    def ended(self, rank: int) -> None:
        """That rank is not to be watched any more."""
        self._ranks.pop(rank, None)

    def patience_s(self, rank: int) -> float:
        """How long that rank may make no progress now."""
        known = self._ranks[rank]
        if known.phase != Phase.TRAINING.value:
            return QUIET_PHASE_S
        if self._fixed_s is not None:
            return self._fixed_s
        return max(LEAST_S, TIMES_LONGEST * max(known.lasted, default=0.0)) if known.lasted else QUIET_PHASE_S

    def hanging(self, now: float) -> list[Hang]:
        """The ranks whose patience is over, those at the lowest step first: the others wait for them."""
        found = []
        for rank, known in self._ranks.items():
            patience_s, silent_s = self.patience_s(rank), now - known.since
            if silent_s > patience_s:
                found.append(
                    Hang(rank=rank, phase=known.phase, step=known.step, silent_s=silent_s, patience_s=patience_s)
                )
        return sorted(found, key=lambda hang: (hang.step, -hang.silent_s))
