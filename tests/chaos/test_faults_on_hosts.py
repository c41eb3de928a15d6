"""Each kind of fault once, on three hosts that share nothing but an S3 and an MLflow server, with the canary: `rexctl
chaos` as typed, and its oracle's word."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from cluster.chaos.canary import result
from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from orchestrator.chaos.plan import KINDS
from orchestrator.store import Store
from tests.campaigns.hosts import run
from tests.support import hosts as hosts_support
from tests.support.clocks import Clocks, missing_for_clocks
from tests.support.radosgw import missing_for_radosgw
from tests.support.ray_hosts import Cluster, lone_hosts

LEASE_S = 8.0
SPLIT = {
    "killed": [kind for kind in KINDS if kind.startswith("kill_")],
    "stopped": [kind for kind in KINDS if kind.startswith("stop_")],
    "cut-off": [kind for kind in KINDS if not kind.startswith(("kill_", "stop_"))],
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    lacking = hosts_support.missing() or missing_for_radosgw()
    if lacking:
        pytest.skip(f"not run: hosts in network namespaces with a store outside: {lacking}")
    with lone_hosts(3, lease_s=LEASE_S) as cluster:
        yield cluster


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kinds", SPLIT.values(), ids=SPLIT.keys())
def test_every_kind_of_fault_is_survived_with_the_bits_of_an_undisturbed_run(
    cluster: Cluster, kinds: list[str], request: pytest.FixtureRequest
) -> None:
    report = cluster.folder / f"{request.node.callspec.id}.md"
    canary = {"nodes": 2, "steps": 60, "commit_every": 10, "credentials": cluster.credentials}
    done = run(cluster, report, timeout_s=1700, kinds=kinds, seed=11, canary=canary, pause_s=6.0)
    assert done.returncode == 0, f"{done.stderr}\n{report.read_text() if report.exists() else ''}"
    trials = json.loads(report.with_suffix(".json").read_text())
    for trial in trials:  # shown with -rA
        print(f"{trial['fault']['kind']}: {trial['ended_at'] - trial['submitted_at']:.1f} s, {trial['causes']}")
    assert len(trials) == len(kinds) and all(trial["struck"] for trial in trials), "every fault hit something"
    assert cluster.left_over() == []


def test_wall_clock_that_jumps_an_hour_forward_and_back_moves_nothing_but_what_people_read(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the third host, for its Ray node, agent, supervisor, msrun and rank. (S3 refuses whoever is a quarter of an hour
    off: if that rank is the one that commits, its commits wait until the clock is right.)"""
    if lacking := missing_for_clocks():
        pytest.skip(f"not run: a clock that jumps: {lacking}")
    clocks = Clocks(cluster.hosts)
    cluster.renew(3, clocks.env)
    arguments = ("--steps", 150, "--step_s", 0.1, "--commit_every", 10)
    job = cluster.submit_canary(*arguments, nodes=3, env=clocks.env, limits={"hang_s": 10})
    status = cluster.wait(job, lambda s: s["progress"]["step"] > 20)
    (node,) = [node for node in status["nodes"] if node["host"] == "rexhost3"]
    for part in ("agent", "supervisor"):
        assert "libfaketime" in cluster.hosts.run(3, ["cat", f"/proc/{node[part]}/environ"]).stdout
    for ahead_s in (3600, -3600, 0):
        clocks.jump(3, ahead_s)
        cluster.wait(job, partial(is_ahead, rank=node["node_rank"], by_s=ahead_s))
    ended = cluster.finish(job)
    assert (ended["state"], [attempt["cause"] for attempt in ended["attempts"]]) == ("succeeded", ["done"]), ended
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    row = Store(cluster.home.database_url).get(job)
    newest = CheckpointStore(open_store(row.store_uri, row.commit_protocol), job).newest()
    assert newest is not None
    files = [file.sha256 for file in newest.files if not file.history]
    assert (newest.step, newest.certificate, files) == result(150)


def is_ahead(status: dict[str, Any], *, rank: int, by_s: float) -> bool:
    """Is that rank's newest heartbeat from a clock which is ahead of ours by so much, give or take ten minutes?"""
    (at,) = [seen["at"] for seen in status["ranks"] if seen["rank"] == rank]
    return abs(at - time.time() - by_s) < 600
