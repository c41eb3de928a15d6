"""Why an attempt ended, from recorded ends."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.verdict import judge
from jobs.budgets import Cause


def outcome(
    rank: int, code: int | None = 0, signal: int | None = None, at: float = 1.0, reason: str = ""
) -> dict[str, Any]:
    return {"rank": rank, "code": code, "signal": signal, "at": at, "reason": reason, "pid": 1, "heartbeat": None}


def record(*outcomes: dict[str, Any], fault: int | None = None, **more: Any) -> dict[str, Any]:
    said = {"fault": None if fault is None else {"rank": fault}, "stop_why": None, "msrun_exit": 1, "survivors": []}
    return {**said, "outcomes": list(outcomes), **more}


def cause(*records: dict[str, Any], stop_for: Cause | None = None, world_size: int = 2) -> Cause:
    return judge(records, world_size=world_size, stop_for=stop_for)[0]


def test_all_ranks_zero_is_done_whatever_msrun_says() -> None:
    assert cause(record(outcome(0), outcome(1), outcome(-1, 1), msrun_exit=1)) is Cause.DONE


def test_msrun_exit_zero_without_outcomes_is_not_success() -> None:
    assert cause(record(msrun_exit=0)) is Cause.INFRASTRUCTURE


def test_fewer_outcomes_than_ranks_is_not_done() -> None:
    assert cause(record(outcome(0), msrun_exit=0)) is Cause.INFRASTRUCTURE


def test_workers_killed_after_the_first_fault_do_not_hide_it() -> None:
    found, detail = judge(
        [record(outcome(1, 42, at=1.0, reason="out of cheese"), outcome(0, None, 9, at=0.5), fault=1)],
        world_size=2,
        stop_for=None,
    )
    assert found is Cause.CRASH and detail == "rank 1 exited 42: out of cheese"


def test_first_fault_over_hosts_is_not_the_one_stopped_because_of_it() -> None:
    first = record(outcome(3, None, 11, at=5.0), fault=3)
    other = record(outcome(0, None, 9, at=2.0), fault=0, stop_why="peer_fault")
    assert judge([other, first], world_size=4, stop_for=None)[1].startswith("rank 3 was killed by signal 11")


@pytest.mark.parametrize(
    ("code", "wanted"),
    [(64, Cause.CONFIG), (69, Cause.INFRASTRUCTURE), (93, Cause.NO_REQUEUE), (1, Cause.CRASH), (42, Cause.CRASH)],
)
def test_exit_codes_mean_what_the_contract_says(code: int, wanted: Cause) -> None:
    assert cause(record(outcome(0, code), outcome(1, None, 9), fault=0)) is wanted


def test_drained_on_request_is_what_was_requested() -> None:
    drained = record(outcome(0, 75), outcome(1, 75), stop_why="preempted", msrun_exit=0)
    assert cause(drained, stop_for=Cause.PREEMPTED) is Cause.PREEMPTED
    assert cause(drained, stop_for=Cause.CANCELLED) is Cause.CANCELLED


def test_drained_without_our_asking_is_a_preemption_by_somebody_else() -> None:
    assert cause(record(outcome(0, 75), outcome(1, 75), msrun_exit=0)) is Cause.PREEMPTED


def test_fenced_while_being_preempted_is_still_never_requeued() -> None:
    assert cause(record(outcome(0, 93), fault=0), stop_for=Cause.PREEMPTED) is Cause.NO_REQUEUE


def test_crash_while_draining_is_told_but_stays_a_preemption() -> None:
    found, detail = judge([record(outcome(0, 1), fault=0)], world_size=2, stop_for=Cause.PREEMPTED)
    assert found is Cause.PREEMPTED and "while draining: rank 0 exited 1" in detail


def test_lost_node_is_named() -> None:
    found, detail = judge(
        [record(stop_why="peer_fault"), {"lost": "node7", "why": "its lease of 60 s ran out"}],
        world_size=2,
        stop_for=None,
    )
    assert (found, detail) == (Cause.NODE_LOST, "lost node7 (its lease of 60 s ran out)")


def test_dead_scheduler_process_is_infrastructure() -> None:
    assert cause(record(outcome(-1, None, 9), fault=-1)) is Cause.INFRASTRUCTURE


def test_node_that_could_not_be_prepared_says_so() -> None:
    said = record(fault=None, message="preparing node3 failed: no space left")
    said["fault"] = {"rank": None, "code": 64}
    assert judge([said], world_size=2, stop_for=None) == (Cause.CONFIG, "preparing node3 failed: no space left")
