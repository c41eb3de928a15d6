"""Kinds of faults, once each, on three hosts that share nothing but an S3 and an MLflow server, with the canary:
`rexctl chaos` as typed, and its oracle's word."""

from __future__ import annotations

import json

import pytest

from orchestrator.chaos.plan import KINDS
from tests.campaigns.hosts import run
from tests.support.ray_hosts import Cluster

# 14 of 23 kinds. The others run beside this; `make chaos` and `make chaos-short` try all.
ELSEWHERE = {
    *("kill_supervisor", "stop_supervisor", "stop_agent"),  # strike one host and no other: on the local stack
    *("kill_control_plane", "stop_ray_node"),  # there, too (tests/integration/stack/test_faults.py)
    *("kill_worker", "power_off", "stop_store"),  # on these hosts, under real training (test_training_on_hosts.py)
    "cut_network",  # on these hosts (test_lost_hosts.py)
}
HERE = [kind for kind in KINDS if kind not in ELSEWHERE]
SPLIT = {
    "killed": [kind for kind in HERE if kind.startswith("kill_")],
    "stopped": [kind for kind in HERE if kind.startswith("stop_")],
    "cut-off": [kind for kind in HERE if not kind.startswith(("kill_", "stop_"))],
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kinds", SPLIT.values(), ids=SPLIT.keys())
def test_every_kind_of_fault_is_survived_with_the_bits_of_an_undisturbed_run(
    cluster: Cluster, kinds: list[str], request: pytest.FixtureRequest
) -> None:
    report = cluster.folder / f"{request.node.callspec.id}.md"
    canary = {"nodes": 2, "steps": 80, "commit_every": 10, "credentials": cluster.credentials}
    done = run(cluster, report, timeout_s=850, kinds=kinds, seed=11, canary=canary, pause_s=6.0)
    assert done.returncode == 0, f"{done.stderr}\n{report.read_text() if report.exists() else ''}"
    assert "(raylet)" not in done.stdout + done.stderr, "Ray's own log lines are no output of ours"
    trials = json.loads(report.with_suffix(".json").read_text())["trials"]
    for trial in trials:  # shown with -rA
        print(f"{trial['fault']['kind']}: {trial['ended_at'] - trial['submitted_at']:.1f} s, {trial['causes']}")
    assert len(HERE) >= 12, "so many kinds are promised on three hosts with the canary"
    assert len(trials) == len(kinds)
    assert all(trial["struck"] for trial in trials), "every fault hit something"
    for trial in trials:
        if trial["fault"]["kind"] == "stop_worker":
            assert_that_all_ranks_left_their_stacks(cluster, trial["job"], trial["struck"]["attempt"])
    assert cluster.left_over() == []


def assert_that_all_ranks_left_their_stacks(cluster: Cluster, job: str, attempt: int) -> None:
    """Those on the other host as well, which waited for nobody and did not hang."""
    for rank, host in enumerate(cluster.status(job)["attempts"][attempt - 1]["hosts"]):
        node = cluster.hosts.work(int(host.removeprefix("rexhost"))) / job / f"attempt-{attempt}" / f"node-{rank}"
        (dump,) = (node / "stacks").glob("rank_*.txt")
        assert "canary.py" in dump.read_text(), dump.read_text()
