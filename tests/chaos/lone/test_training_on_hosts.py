"""Real training on three hosts under faults of three sorts: a process, a host, a service that everybody needs."""

from __future__ import annotations

import json

import pytest

from tests.campaigns.hosts import run, training
from tests.support.ray_hosts import Cluster

KINDS = ["kill_worker", "power_off", "stop_store"]


@pytest.mark.timeout(1800)
def test_training_under_faults_ends_with_the_bits_of_an_undisturbed_run(cluster: Cluster) -> None:
    report = cluster.folder / "training.md"
    canary = training(cluster, steps=150, hang_s=120.0)
    done = run(cluster, report, timeout_s=1700, kinds=KINDS, seed=5, canary=canary, pause_s=6.0)
    assert done.returncode == 0, f"{done.stderr}\n{report.read_text() if report.exists() else ''}"
    trials = json.loads(report.with_suffix(".json").read_text())["trials"]
    for trial in trials:  # shown with -rA
        print(f"{trial['fault']['kind']}: {trial['ended_at'] - trial['submitted_at']:.1f} s, {trial['causes']}")
    assert [trial["fault"]["kind"] for trial in trials if trial["struck"]] == [t["fault"]["kind"] for t in trials]
    assert cluster.left_over() == []
