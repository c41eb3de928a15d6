"""Each kind of fault once, on three hosts, with the canary: `rexctl chaos` as typed, and its oracle's word."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.chaos.plan import KINDS
from tests.support import hosts as hosts_support
from tests.support.hands import Hands
from tests.support.hosts import Hosts
from tests.support.ray_hosts import Cluster
from tests.support.rex import REXCTL

LEASE_S = 10.0
NOT_HERE = {
    "fill_disk": "the hosts share their disk with this machine: tests/chaos/test_preflight_hosts.py has one of its own",
    "slow_network": "this kernel may lack netem",
    "stop_mlflow": "tests/integration/test_faults.py",
    "stop_store": "tests/chaos/test_checkpoint_faults.py",
    "blink_network": "its healing hand boots the host anew, which is no blink",
}


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


def test_every_kind_of_fault_is_survived_with_the_bits_of_an_undisturbed_run(cluster: Cluster) -> None:
    kinds = [kind for kind in KINDS if kind not in NOT_HERE]
    assert len(kinds) >= 12
    report = cluster.folder / "chaos.md"
    with Hands(cluster) as hands:
        plan = {
            "seed": 11,
            "kinds": kinds,
            "canary": {"nodes": 2, "steps": 80, "step_s": 0.1, "commit_every": 10},
            "pause_s": 6.0,
            "spare": ["rexhost1"],
            "commands": hands.commands(),
        }
        path = cluster.folder / "plan.yaml"
        path.write_text(yaml.safe_dump(plan))
        env = {"REX_HOME": str(cluster.home.path)}
        done = cluster.hosts.run(1, [REXCTL, "chaos", str(path), "--report", str(report)], env=env, timeout=3000)
    assert done.returncode == 0, f"{done.stderr}\n{report.read_text() if report.exists() else ''}"
    trials = json.loads(report.with_suffix(".json").read_text())
    assert len(trials) == len(kinds) and all(trial["struck"] for trial in trials), "every fault hit something"
    assert cluster.left_over() == []
