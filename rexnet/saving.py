"""When to save: every n steps, every t seconds, or as often as it pays.

Pure: whoever asks brings the time. `auto` weighs the time that saving costs against the work that an interruption
loses, by Young's and Daly's interval, from what this run has measured of both. Rank 0 alone decides; no other saves.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jobs.errors import SpecError

PRIOR_S = 24 * 3600.0  # a run is trusted to have gone on for so long before its first interruption
LONGEST_S = 1800.0
FIRST_S = 60.0  # until a checkpoint has been measured
RETRY_S = 30.0  # after a failed commit, if the interval is longer
_UNITS = {"step": 1, "s": 1.0, "min": 60.0, "h": 3600.0}
_RULE = re.compile(r"^(\d+(?:\.\d+)?)\s*(steps?|s|min|h)$")
_RECENT = 64  # steps whose times are compared
_ENOUGH = 8  # of each kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One of the two is set, or neither: auto."""

    every_steps: int | None = None
    every_s: float | None = None


def parse_rule(text: str) -> Rule:
    """`500 steps`, `30 s`, `10 min`, `1 h` or `auto`. SpecError on anything else."""
    match = _RULE.match(text.strip())
    if text.strip() == "auto":
        return Rule()
    if match is not None:
        number, unit = float(match[1]), match[2]
        if unit.startswith("step") and number == int(number) > 0:
            return Rule(every_steps=int(number))
        if not unit.startswith("step") and number > 0:
            return Rule(every_s=number * _UNITS[unit])
    raise SpecError(f"{text!r} is no time to save", hint="say 500 steps, 30 s, 10 min, 1 h or auto")


def daly_interval(cost_s: float, mean_time_s: float) -> float:
    """Seconds of work between checkpoints that make the expected run shortest.

    J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22 (2006) 303-312,
    equation 37; its first term is Young's sqrt(2 C M) (CACM 17 (1974) 530). It holds for interruptions that come as a
    Poisson process. That a commit is durable only some time after its snapshot loses that time once an interruption,
    whatever the interval, and does not move the optimum.

    Args:
        cost_s: seconds that one checkpoint takes from the work, above 0.
        mean_time_s: mean time between interruptions.
    """
    if cost_s >= 2 * mean_time_s:
        return mean_time_s
    ratio = cost_s / (2 * mean_time_s)
    return math.sqrt(2 * cost_s * mean_time_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


def running_time(attempts: Iterable[tuple[float, float | None]]) -> float:
    """Seconds that attempts are known to have run, of (start, last commit or None).

    What ran after the last commit is not known and left out, so interruptions seem a little more frequent. Attempts
    that ended well on request count as interrupted too: the chain of checkpoints does not tell. Hosts' clocks may
    differ: an attempt never counts below 0.
    """
    return sum(max(0.0, last - start) for start, last in attempts if last is not None)


class Schedule:
    """Decides at each step whether to save. Times are seconds of one monotonic clock.

    Args:
        ran_before_s: `running_time` of the earlier attempts.
        num_interruptions: how many they were.
        now: when the attempt begins; see `begin`.
    """

    def __init__(self, rule: Rule, *, ran_before_s: float, num_interruptions: int, now: float) -> None:
        self._rule, self._ran_before_s, self._num_interruptions = rule, ran_before_s, num_interruptions
        self._began = self._saved_at = now
        self._blocked: deque[float] = deque(maxlen=9)
        self._alone: deque[float] = deque(maxlen=_RECENT)
        self._beside: deque[float] = deque(maxlen=_RECENT)
        self._num_saved = self._num_beside = 0

    def begin(self, now: float) -> None:
        """The first step is done: what came before it, compilation above all, is nothing that could be saved."""
        self._began = self._saved_at = now

    def is_due(self, step: int, now: float, *, commit_s: float, failing: bool) -> bool:
        """Whether to save after `step`.

        Args:
            commit_s: seconds that the newest commit took.
            failing: whether it failed; then time does not wait for the whole interval.
        """
        if self._rule.every_steps is not None:
            return step % self._rule.every_steps == 0
        interval_s = self.interval_s(now, commit_s=commit_s)
        return now - self._saved_at >= (min(interval_s, max(RETRY_S, commit_s)) if failing else interval_s)

    def interval_s(self, now: float, *, commit_s: float) -> float:
        """Seconds between checkpoints; infinite where steps decide.

        Of auto: Daly's, at most half an hour, and no shorter than a commit takes.
        """
        if self._rule.every_steps is not None:
            return math.inf
        if self._rule.every_s is not None:
            return self._rule.every_s
        cost_s = self.cost_s
        wanted = FIRST_S if cost_s is None else daly_interval(cost_s, self.mean_time_s(now)) + cost_s
        return max(min(wanted, LONGEST_S), commit_s)

    def mean_time_s(self, now: float) -> float:
        """Mean time between interruptions: all the time the run has run and a day, over one more than they were."""
        return (self._ran_before_s + now - self._began + PRIOR_S) / (self._num_interruptions + 1)

    @property
    def cost_s(self) -> float | None:
        """Seconds that one checkpoint takes from training: the step's wait and what commits slow down; None: unknown.

        Steps beside a commit are compared with steps alone, by their medians, once there are enough of both; with a
        store so slow that there are none alone, the wait is all that is known.
        """
        if not self._blocked:
            return None
        slower = 0.0
        if min(len(self._alone), len(self._beside)) >= _ENOUGH:
            each = max(0.0, statistics.median(self._beside) - statistics.median(self._alone))
            slower = each * self._num_beside / self._num_saved
        return max(1e-6, statistics.median(self._blocked) + slower)

    def saved(self, now: float, blocked_s: float) -> None:
        """A snapshot was taken, and the step waited so long for it."""
        self._saved_at = now
        self._blocked.append(blocked_s)
        self._num_saved += 1

    def stepped(self, seconds: float, *, beside_commit: bool) -> None:
        """A step took so long; `beside_commit`: a commit was in flight when it began."""
        (self._beside if beside_commit else self._alone).append(seconds)
        self._num_beside += beside_commit

    def status(self, now: float, *, commit_s: float) -> dict[str, Any]:
        """For people: the rule, and of auto what it rests on (seconds)."""
        rule = self._rule
        found: dict[str, Any] = {"rule": "auto"}
        if rule.every_steps is not None:
            found["rule"] = f"{rule.every_steps} steps"
        elif rule.every_s is not None:
            found["rule"] = f"{rule.every_s:g} s"
        if rule.every_steps is None:
            found["interval_s"] = round(self.interval_s(now, commit_s=commit_s), 3)
        found |= {"cost_s": None if self.cost_s is None else round(self.cost_s, 6), "commit_s": round(commit_s, 3)}
        found |= {"mean_time_between_interruptions_s": round(self.mean_time_s(now), 1),
                  "num_interruptions": self._num_interruptions}  # fmt: skip
        return found
