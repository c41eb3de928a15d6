"""Hangs: judged by the job's own steps."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.node.hang import LEAST_S, QUIET_PHASE_S, TIMES_LONGEST, HangWatch


def beat(rank: int = 0, step: int = 0, phase: str = "training") -> dict[str, Any]:
    return {"rank": rank, "step": step, "phase": phase}


def stepping(watch: HangWatch, *, every_s: float, steps: int, rank: int = 0) -> float:
    for step in range(steps):
        watch.heard(beat(rank, step), step * every_s)
    return (steps - 1) * every_s


def test_patience_is_ten_times_the_longest_step() -> None:
    watch = HangWatch()
    last = stepping(watch, every_s=30.0, steps=5)
    assert watch.patience_s(0) == TIMES_LONGEST * 30.0
    assert watch.hanging(last + 299.0) == []
    (hang,) = watch.hanging(last + 301.0)
    assert (hang.rank, hang.step) == (0, 4) and "made no step for 301 s after step 4" in str(hang)


def test_patience_with_short_steps_has_a_floor() -> None:
    watch = HangWatch()
    stepping(watch, every_s=0.1, steps=50)
    assert watch.patience_s(0) == LEAST_S


def test_heartbeats_without_a_step_do_not_count_while_training() -> None:
    """A checkpoint thread tells its news while the loop stands still."""
    watch = HangWatch()
    last = stepping(watch, every_s=1.0, steps=5)
    for second in range(100):
        watch.heard(beat(step=4), last + second)
    assert len(watch.hanging(last + 100)) == 1


@pytest.mark.parametrize("phase", ["compiling", "validating", "resuming"])
def test_heartbeats_count_in_phases_without_steps(phase: str) -> None:
    watch = HangWatch()
    watch.heard(beat(phase=phase), 0.0)
    assert watch.hanging(QUIET_PHASE_S - 1) == []
    watch.heard(beat(phase=phase), QUIET_PHASE_S - 1)
    assert watch.hanging(QUIET_PHASE_S + 1) == []
    assert len(watch.hanging(2 * QUIET_PHASE_S)) == 1


def test_time_of_a_validation_is_no_step() -> None:
    watch = HangWatch()
    stepping(watch, every_s=1.0, steps=5)
    watch.heard(beat(step=4, phase="validating"), 5.0)
    watch.heard(beat(step=4), 500.0)
    watch.heard(beat(step=5), 501.0)
    assert watch.patience_s(0) == LEAST_S


@pytest.mark.parametrize("phase", ["draining", "done"])
def test_last_commit_has_its_time_and_a_rank_that_never_leaves_is_seen(phase: str) -> None:
    watch = HangWatch(fixed_s=1.0)
    watch.heard(beat(step=9), 0.0)
    watch.heard(beat(step=9, phase=phase), 1.0)
    assert watch.hanging(QUIET_PHASE_S) == []
    (hang,) = watch.hanging(QUIET_PHASE_S + 2)
    assert f"while {phase}" in str(hang)


def test_ranks_that_have_ended_are_not_watched() -> None:
    watch = HangWatch(fixed_s=1.0)
    watch.heard(beat(), 0.0)
    watch.ended(0)
    assert watch.hanging(1e6) == []


def test_rank_that_is_behind_is_named_first() -> None:
    """The others stand still because they wait for it."""
    watch = HangWatch(fixed_s=5.0)
    watch.heard(beat(0, step=8), 1.0)
    watch.heard(beat(1, step=7), 2.0)
    assert [hang.rank for hang in watch.hanging(10.0)] == [1, 0]


def test_first_step_may_take_as_long_as_a_compile() -> None:
    watch = HangWatch()
    watch.heard(beat(step=1), 0.0)
    assert watch.patience_s(0) == QUIET_PHASE_S
