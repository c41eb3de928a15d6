"""Why an attempt ended, from recorded ends."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.outcome.exits import Kind
from cluster.outcome.verdict import each_rank, judge
from jobs.budgets import Cause


def outcome(
    rank: int, code: int | None = 0, signal: int | None = None, at: float = 1.0, reason: str = ""
) -> dict[str, Any]:
    return {"rank": rank, "code": code, "signal": signal, "at": at, "reason": reason, "pid": 1, "heartbeat": None}


def record(*outcomes: dict[str, Any], fault: int | None = None, **more: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "fault": None if fault is None else {"rank": fault},
        "stop_why": None,
        "msrun_exit": 1,
        "survivors": [],
    }
    return {**said, "outcomes": list(outcomes), **more}


def cause(*records: dict[str, Any], stop_for: Cause | None = None, world_size: int = 2) -> Cause:
    return judge(records, world_size=world_size, stop_for=stop_for).cause


def test_all_ranks_zero_is_done_whatever_msrun_says() -> None:
    assert cause(record(outcome(0), outcome(1), outcome(-1, 1), msrun_exit=1)) is Cause.DONE


def test_msrun_exit_zero_without_outcomes_is_not_success() -> None:
    assert cause(record(msrun_exit=0)) is Cause.INFRASTRUCTURE


def test_fewer_outcomes_than_ranks_is_not_done() -> None:
    assert cause(record(outcome(0), msrun_exit=0)) is Cause.INFRASTRUCTURE


def test_workers_killed_after_the_first_fault_do_not_hide_it() -> None:
    found = judge(
        [record(outcome(1, 42, at=1.0, reason="out of cheese"), outcome(0, None, 9, at=0.5), fault=1)],
        world_size=2,
        stop_for=None,
    )
    assert found.cause is Cause.CRASH and found.detail == "rank 1 exited 42: out of cheese"
    assert (found.rank, found.at) == (1, 1.0)


def test_first_fault_over_hosts_is_not_the_one_stopped_because_of_it() -> None:
    first = record(outcome(3, None, 11, at=5.0), fault=3)
    other = record(outcome(0, None, 9, at=2.0), fault=0, stop_why="peer_fault")
    assert judge([other, first], world_size=4, stop_for=None).detail.startswith("rank 3 was killed by signal 11")


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
    found = judge([record(outcome(0, 1), fault=0)], world_size=2, stop_for=Cause.PREEMPTED)
    assert found.cause is Cause.PREEMPTED and "while draining: rank 0 exited 1" in found.detail


def test_lost_node_is_named() -> None:
    found = judge(
        [record(stop_why="peer_fault"), {"lost": "node7", "why": "its lease of 60 s ran out"}],
        world_size=2,
        stop_for=None,
    )
    assert (found.cause, found.kind, found.host) == (Cause.NODE_LOST, Kind.HOST_LOST, "node7")
    assert found.detail == "lost node7 (its lease of 60 s ran out)"


def test_end_of_each_rank_is_told_those_first_that_ended_by_themselves() -> None:
    records = [
        record(outcome(0, None, 11, at=5.0), outcome(1, 1, at=4.0, reason="no memory"), node_rank=0),
        record(stop_why="peer_fault", node_rank=1),
        {"lost": "n3", "why": "its lease ran out", "node_rank": 2},
    ]
    told = each_rank(records, world_size=6, hosts=["n1", "n2", "n3"])
    assert [end["rank"] for end in told] == [1, 0, 2, 3, 4, 5]
    assert (told[0]["code"], told[1]["signal"], told[2]["at"]) == (1, 11, None)
    assert str(told[0]["says"]).startswith("rank 1 on n1 exited 1") and "no memory" in str(told[0]["says"])
    assert told[3]["says"] == "rank 3 on n2 was ended for a fault elsewhere in the gang"
    assert told[5]["says"] == "rank 5 on n3 is lost with its host"


def hung(at: float = 1.0) -> dict[str, Any]:
    fault = {"rank": 0, "code": None, "signal": None, "hang": "rank 0 made no step for 60 s", "at": at}
    return {**record(outcome(0, None, 9), node_rank=0), "fault": fault}


@pytest.mark.parametrize(
    ("other", "wanted", "said"),
    [
        ({"lost": "node7", "why": "the provider says that it is gone"}, Cause.NODE_LOST, "lost node7 (the provider"),
        (record(outcome(1, None, 9), stop_why="lease_over", node_rank=1), Cause.NODE_LOST, "node7 did not reach the"),
        (record(outcome(1, None, 9), stop_why="agent_gone", node_rank=1), Cause.INFRASTRUCTURE, "the agent on node7"),
        (record(outcome(1, None, 9), stop_why="peer_hangs", node_rank=1), Cause.HANG, "rank 0 on node3 made no step"),
    ],
)
def test_ranks_that_wait_for_a_node_that_is_gone_are_no_hang(other: dict[str, Any], wanted: Cause, said: str) -> None:
    found = judge([hung(), other], world_size=2, stop_for=None, hosts=["node3", "node7"])
    assert found.cause is wanted and found.detail.startswith(said)
    assert found.host == ("node3" if wanted is Cause.HANG else "node7")


def test_dead_scheduler_process_is_infrastructure() -> None:
    assert cause(record(outcome(-1, None, 9), fault=-1)) is Cause.INFRASTRUCTURE


def test_node_that_could_not_be_prepared_says_so() -> None:
    said = record(fault=None, message="preparing node3 failed: no space left")
    said["fault"] = {"rank": None, "code": 64}
    found = judge([said], world_size=2, stop_for=None)
    assert (found.cause, found.detail) == (Cause.CONFIG, "preparing node3 failed: no space left")


def test_first_to_fail_is_named_with_its_host_and_what_the_kernel_did() -> None:
    killed = {**outcome(3, None, 9, at=7.5, reason="step 12"), "oom": {"cgroup": 1, "host": 1, "line": ""}}
    found = judge(
        [record(stop_why="peer_fault"), record(killed, fault=3, node_rank=1)],
        world_size=4,
        stop_for=None,
        hosts=("host-a", "host-b"),
    )
    assert (found.cause, found.kind) == (Cause.CRASH, Kind.OUT_OF_MEMORY)
    assert (found.rank, found.host, found.at) == (3, "host-b", 7.5)
    assert found.detail == (
        "rank 3 on host-b was killed by signal 9 (out of memory: the kernel killed 1 process in its cgroup): step 12"
    )
    assert "memory" in found.hint


def test_rank_that_only_lost_its_peer_is_not_blamed_although_its_clock_runs_ahead() -> None:
    echo = {**outcome(0, 1, at=5.0), "tail": "EI0006: Getting socket times out."}
    origin = outcome(1, None, 11, at=6.0)
    found = judge([record(echo, fault=0), record(origin, fault=1)], world_size=2, stop_for=None)
    assert (found.rank, found.kind) == (1, Kind.PROGRAM)


def test_program_that_fails_in_the_scheduler_process_too_is_no_infrastructure() -> None:
    """msrun runs the script once as its scheduler: a bad import fails there as well, and may be seen there first."""
    bad = {**outcome(-1, 1, at=1.0, reason="NameError: name 'x' is not defined"), "tail": "Traceback"}
    found = judge([record(bad, outcome(0, 1, at=1.1), fault=-1)], world_size=2, stop_for=None)
    assert (found.cause, found.kind) == (Cause.CRASH, Kind.PROGRAM)
    assert found.detail.startswith("msrun's scheduler process exited 1")


def test_msrun_killed_for_memory_itself_is_told_by_the_nodes_own_count() -> None:
    said = record(msrun_exit=-9, oom={"cgroup": 2, "host": 2, "line": ""}, node_rank=0, at=3.0)
    found = judge([said], world_size=2, stop_for=None, hosts=("host-a",))
    assert (found.cause, found.kind, found.host) == (Cause.CRASH, Kind.OUT_OF_MEMORY, "host-a")
    assert "2 processes" in found.detail


@pytest.mark.parametrize("seen_first", [-1, 0, None])
def test_scheduler_that_only_missed_a_rank_is_not_blamed_whatever_was_seen_first(seen_first: int | None) -> None:
    echo = {**outcome(-1, 1, at=1.0), "tail": "timed out node is 1"}
    origin = outcome(0, 1, at=1.1, reason="RuntimeError: boom")
    found = judge([record(echo, origin, fault=seen_first)], world_size=1, stop_for=None)
    assert (found.cause, found.rank, found.detail) == (Cause.CRASH, 0, "rank 0 exited 1: RuntimeError: boom")


def unattended(*outcomes: dict[str, Any]) -> dict[str, Any]:
    """What `certify` makes where supervisor and agent died together."""
    said = record(*outcomes, message="the agent died", unattended=True, msrun_exit=None)
    return {**said, "fault": {"rank": None, "code": None}}


@pytest.mark.parametrize(
    ("outcomes", "wanted"),
    [
        ([outcome(0), outcome(1)], Cause.DONE),
        ([outcome(0, None, 9), outcome(1, 64)], Cause.CONFIG),
        ([outcome(0, 93)], Cause.NO_REQUEUE),
        ([outcome(0, 0)], Cause.INFRASTRUCTURE),
        ([outcome(0, None, 9), outcome(1, None, 9)], Cause.INFRASTRUCTURE),
    ],
)
def test_what_ranks_left_counts_although_nobody_was_there_to_hear_it(
    outcomes: list[dict[str, Any]], wanted: Cause
) -> None:
    assert cause(unattended(*outcomes)) is wanted


@pytest.mark.parametrize(("stop", "kind"), [(Cause.HANG, Kind.HANG), (Cause.CANCELLED, Kind.CANCELLED)])
def test_stop_of_the_control_plane_is_the_kind(stop: Cause, kind: Kind) -> None:
    assert judge([record(outcome(0, None, 9), fault=0)], world_size=1, stop_for=stop).kind is kind
