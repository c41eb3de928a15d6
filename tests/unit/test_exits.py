"""What recorded ends mean by the table. Those of Ascend are from documentation and other people's logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.outcome.exits import TABLE, Kind, explain
from cluster.outcome.last_words import OomCount, _cgroup_file, last_words
from jobs.budgets import Cause

RECORDED = Path(__file__).with_name("recorded") / "exits"

# file -> {rank: (row, kind)}
EXPECTED: dict[str, dict[int, tuple[str, Kind]]] = {
    "killed_worker": {0: ("killed", Kind.PROGRAM)},
    "traceback": {0: ("program", Kind.PROGRAM), -1: ("program", Kind.PROGRAM)},
    "missing_module": {0: ("missing_module", Kind.CONFIGURATION)},
    "memory_error": {0: ("oom_program", Kind.OUT_OF_MEMORY)},
    "numpy_memory": {0: ("oom_program", Kind.OUT_OF_MEMORY)},
    "device_memory": {0: ("oom_program", Kind.OUT_OF_MEMORY)},
    "cgroup_oom": {0: ("oom_cgroup", Kind.OUT_OF_MEMORY)},
    "segfault": {0: ("segmentation_fault", Kind.PROGRAM)},
    "full_disk": {0: ("disk_full", Kind.INFRASTRUCTURE)},
    "no_more_processes": {0: ("not_started", Kind.INFRASTRUCTURE)},
    "killed_scheduler": {-1: ("scheduler_killed", Kind.SCHEDULER)},
    "port_taken": {-1: ("port_taken", Kind.SCHEDULER)},
    "node_missing": {-1: ("worker_missing", Kind.SCHEDULER), 0: ("cluster_not_formed", Kind.SCHEDULER)},
    "left_by_peer": {1: ("collective_broke", Kind.NETWORK)},
    "lost_peer": {
        -1: ("peer_timed_out", Kind.NETWORK),
        0: ("collective_broke", Kind.NETWORK),
        1: ("killed", Kind.PROGRAM),
    },
    "lost_peer_heartbeat": {0: ("heartbeat_lost", Kind.NETWORK), 1: ("killed", Kind.PROGRAM)},
    "ascend_ei0002": {0: ("peer_silent", Kind.NETWORK)},
    "ascend_ei0004": {0: ("hccl_configuration", Kind.CONFIGURATION)},
    "ascend_ei0005": {0: ("hccl_configuration", Kind.CONFIGURATION)},
    "ascend_ei0006": {0: ("peer_unreachable", Kind.NETWORK)},
    "ascend_ei0006_plog": {0: ("peer_unreachable", Kind.NETWORK)},
    "ascend_ei0015": {0: ("peer_unreachable", Kind.NETWORK)},
    "ascend_hccl_port_taken": {0: ("hccl_port_taken", Kind.NETWORK)},
    "ascend_ee9999_wait": {0: ("peer_silent", Kind.NETWORK)},
    "ascend_ee1001": {0: ("device_error", Kind.DEVICE)},
    "ascend_el0001": {0: ("device_gone", Kind.DEVICE)},
    "ascend_el0003": {0: ("device_error", Kind.DEVICE)},
    "ascend_el0004": {0: ("oom_device", Kind.OUT_OF_MEMORY)},
    "ascend_el0004_named": {0: ("oom_device", Kind.OUT_OF_MEMORY)},
}


def recorded(name: str) -> dict[str, Any]:
    return dict(json.loads((RECORDED / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDED.glob("*.json")))
def test_recorded_end_is_what_it_was(name: str) -> None:
    found = {o["rank"]: explain(o) for o in recorded(name)["outcomes"]}
    for rank, (row, kind) in EXPECTED[name].items():
        assert (found[rank].rule.name, found[rank].rule.kind) == (row, kind), recorded(name)["outcomes"]


def test_every_recorded_end_says_where_it_comes_from_and_hardware_rows_admit_that_they_were_never_seen() -> None:
    assert set(EXPECTED) == {path.stem for path in RECORDED.glob("*.json")}
    for name in EXPECTED:
        record = recorded(name)
        rows = [explain(o).rule for o in record["outcomes"]]
        if name.startswith("ascend_"):
            assert "recorded 20" not in record["source"] and not any(row.seen for row in rows)
        else:
            assert record["source"].startswith("recorded 20") and all(row.seen for row in rows)


def test_sentence_names_the_port_that_was_taken() -> None:
    (outcome,) = recorded("port_taken")["outcomes"]
    says = explain(outcome).says
    assert says.startswith("another process holds the master port 127.0.0.1:")


def test_sentence_counts_the_workers_that_came() -> None:
    scheduler = next(o for o in recorded("node_missing")["outcomes"] if o["rank"] < 0)
    assert explain(scheduler).says == "only 1 of 2 workers reached msrun's scheduler in time"


@pytest.mark.parametrize(
    ("code", "cause"),
    [(64, Cause.CONFIG), (69, Cause.INFRASTRUCTURE), (75, Cause.PREEMPTED), (93, Cause.NO_REQUEUE), (1, Cause.CRASH)],
)
def test_code_of_the_contract_is_believed_whatever_the_last_lines_say(code: int, cause: Cause) -> None:
    outcome = {"rank": 0, "code": code, "signal": None, "tail": "nothing to see"}
    assert explain(outcome).rule.cause is cause
    if code != 1:
        assert explain({**outcome, "tail": "MemoryError"}).rule.cause is cause


def test_kernels_line_alone_is_evidence_of_memory() -> None:
    line = "Memory cgroup out of memory: Killed process 14059 (python3)"
    outcome = {"rank": 0, "code": None, "signal": 9, "oom": {"cgroup": 0, "host": 0, "line": line}}
    assert explain(outcome).rule.name == "oom_host"


def test_retries_of_a_healthy_start_do_not_explain_a_later_kill() -> None:
    """MindSpore tells "Topology build timed out., retry(8/3600)" in every start that goes well."""
    tail = "[WARNING] BuildCluster] Topology build timed out., retry(8/3600).\nstep 7"
    assert explain({"rank": 0, "code": None, "signal": 9, "tail": tail}).rule.name == "killed"
    assert explain({"rank": 0, "code": 3, "signal": None, "tail": tail}).rule.name == "program"


KEPT = (
    "2026-11-24 10:00:00,000 WARNING rexnet.journal action=journal cause=[Errno 28] No space left on device: "
    "its points are kept in memory until there is room"
)


@pytest.mark.parametrize(
    ("code", "killer", "then", "row"),
    [
        (1, None, "Traceback (most recent call last):\nRuntimeError: shapes do not match", "program"),
        (None, 11, "".join(f"step {i}: so far so good\n" for i in "abcdef"), "segmentation_fault"),
        (1, None, "Traceback (most recent call last):\nOSError: [Errno 28] No space left on device", "disk_full"),
    ],
)
def test_what_a_program_went_on_after_does_not_explain_its_end(
    code: int | None, killer: int | None, then: str, row: str
) -> None:
    """rexnet's own harmless word of a full disk, and what came much later."""
    reason, tail = last_words(f"{KEPT}\nstep 8\n{then}\n")
    assert "kept in memory" in tail
    assert explain({"rank": 0, "code": code, "signal": killer, "reason": reason, "tail": tail}).rule.name == row


@pytest.mark.parametrize(
    ("said", "row"),
    [
        (
            "Traceback (most recent call last):\nOSError: [Errno 28] No space left on device\n\n"
            "The above exception was the direct cause of the following exception:\n\n"
            "Traceback (most recent call last):\nValueError: cannot save",
            "disk_full",
        ),
        ("[ERROR] DEVICE(1,7f): malloc memory failed\nRuntimeError: Exec graph failed", "oom_program"),
        ("[ERROR] ME(1,7f): odd\nterminate called after throwing an instance of 'std::bad_alloc'", "oom_program"),
    ],
)
def test_cause_of_an_exception_and_what_is_said_behind_an_error_count(said: str, row: str) -> None:
    reason, tail = last_words(said)
    assert explain({"rank": 0, "code": 1, "signal": None, "reason": reason, "tail": tail}).rule.name == row


def test_every_row_can_be_reached_and_only_the_last_fits_everything() -> None:
    names = [rule.name for rule in TABLE]
    assert len(names) == len(set(names)) and names[-1] == "program"
    for rule in TABLE[:-1]:
        assert rule.code is not None or rule.signal is not None or rule.words is not None, rule.name


# -- what the shim gathers


def test_last_words_are_the_exception_whatever_a_library_prints_behind_it() -> None:
    text = "step 1\nTraceback (most recent call last):\n  File x\nValueError: no\n" + "-----\n- C++ Call Stack\n" * 20
    reason, tail = last_words(text)
    assert reason == "ValueError: no"
    assert "ValueError: no" in tail and "Traceback" in tail


def test_last_words_of_a_killed_process_are_its_own_not_routine_warnings() -> None:
    reason, _ = last_words("rank 1 step 1\n" + "[WARNING] DISTRIBUTED(1,7f): all is well\n" * 9)
    assert reason == "rank 1 step 1"


def test_retried_line_is_kept_once_in_its_newest_form() -> None:
    lines = [f"[ERROR] connect failed, retry({i}/30)" for i in range(30)]
    _, tail = last_words("\n".join(lines))
    assert tail == "[ERROR] connect failed, retry(29/30)"


def test_tail_is_bounded() -> None:
    _, tail = last_words("\n".join(f"Error {'x' * i} {chr(97 + i % 26)}" for i in range(2000)))
    assert len(tail) <= 6000


@pytest.mark.parametrize(
    ("listing", "file"),
    [
        ("4:memory:/docker/ab\n0::/\n", "memory/docker/ab/memory.oom_control"),
        ("4:memory:/docker/of-the-host\n", "memory/memory.oom_control"),
        ("0::/kubepods/pod1\n", "kubepods/pod1/memory.events"),
        ("0::/named-by-the-host\n", "memory.events"),
    ],
)
def test_cgroup_is_found_in_both_versions_and_inside_containers(tmp_path: Path, listing: str, file: str) -> None:
    path = tmp_path / "fs" / file
    path.parent.mkdir(parents=True)
    path.write_text("oom_kill 3\n")
    (tmp_path / "listing").write_text(listing)
    assert _cgroup_file(tmp_path / "fs", tmp_path / "listing") == path


def test_no_kill_for_memory_since_the_start_is_no_evidence() -> None:
    before = OomCount(cgroup=2, host=5, at=1e12)
    assert OomCount(cgroup=2, host=5, at=1e12).since(before) is None
    assert OomCount(cgroup=3, host=6, at=1e12).since(before) == {"cgroup": 1, "host": 1, "line": ""}
    assert OomCount(cgroup=None, host=None, at=1e12).since(before) is None
