"""Each kind of fault once, on three hosts, with the canary: `rexctl chaos` as typed, and its oracle's word."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.hosts import kinds, run
from tests.support import hosts as hosts_support
from tests.support.hosts import Hosts
from tests.support.ray_hosts import Cluster

LEASE_S = 10.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    lacking = hosts_support.missing()
    if lacking is not None:
        pytest.skip(f"not run: hosts in network namespaces: {lacking}")
    with tempfile.TemporaryDirectory(prefix="rexhosts", dir="/var/tmp") as name, Hosts(Path(name), 3) as hosts:
        cluster = Cluster(hosts, Path(name), lease_s=LEASE_S)
        cluster.up()
        yield cluster
        cluster.rexctl("down", "--now")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped-or-cut-off"])
def test_every_kind_of_fault_is_survived_with_the_bits_of_an_undisturbed_run(cluster: Cluster, killed: bool) -> None:
    chosen = [kind for kind in kinds() if kind.startswith("kill_") is killed]
    assert len(kinds()) >= 12 and len(chosen) >= 6
    report = cluster.folder / f"chaos-{killed}.md"
    canary = {"nodes": 2, "steps": 80, "step_s": 0.1, "commit_every": 10}
    done = run(cluster, report, timeout_s=1700, kinds=chosen, seed=11, canary=canary, pause_s=6.0)
    assert done.returncode == 0, f"{done.stderr}\n{report.read_text() if report.exists() else ''}"
    trials = json.loads(report.with_suffix(".json").read_text())
    assert len(trials) == len(chosen) and all(trial["struck"] for trial in trials), "every fault hit something"
    assert cluster.left_over() == []
