"""A wall clock that jumps, on one host of a gang, decides nothing."""

from __future__ import annotations

import time
from functools import partial

import pytest

from cluster.chaos.canary import result
from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from orchestrator.store import Store
from tests.support.clocks import Clocks, missing_for_clocks
from tests.support.ray_hosts import Cluster, all_are_heard

STEPS = 600


def is_ahead(store: Store, job: str, rank: int, by_s: float, _: object) -> bool:
    """Is that rank's newest heartbeat from a clock which is ahead of ours by so much, give or take ten minutes?"""
    told = [beat["at"] for beat in store.attempt(job, 1).view["ranks"] if beat["rank"] == rank]
    return any(abs(at - time.time() - by_s) < 600 for at in told)


def test_wall_clock_that_jumps_an_hour_forward_and_back_moves_nothing_but_what_people_read(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the third host, for its Ray node, agent, supervisor, msrun and rank. (S3 refuses whoever is a quarter of an
    hour off. Were that rank the one that commits, its commits would wait for half a minute: it commits at the end.)"""
    if lacking := missing_for_clocks():
        pytest.skip(f"not run: a clock that jumps: {lacking}")
    clocks, store = Clocks(cluster.hosts), Store(cluster.home.database_url)
    cluster.renew(3, clocks.env)
    arguments = ("--steps", STEPS, "--step_s", 0.1, "--commit_every", STEPS)
    job = cluster.submit_canary(*arguments, nodes=3, env=clocks.env, limits={"hang_s": 600})
    status = cluster.wait(job, lambda s: all_are_heard(s, 3) and s["progress"]["step"] > 20)
    (node,) = [node for node in status["nodes"] if node["host"] == "rexhost3"]
    for part in ("agent", "supervisor"):
        assert "libfaketime" in cluster.hosts.run(3, ["cat", f"/proc/{node[part]}/environ"]).stdout
    for ahead_s in (3600, -3600, 0):
        clocks.jump(3, ahead_s)
        cluster.wait(job, partial(is_ahead, store, job, node["node_rank"], ahead_s))
    ended = cluster.finish(job)
    assert (ended["state"], [attempt["cause"] for attempt in ended["attempts"]]) == ("succeeded", ["done"]), ended
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    row = store.get(job)
    newest = CheckpointStore(open_store(row.store_uri, row.commit_protocol), job).newest()
    assert newest is not None
    files = [file.sha256 for file in newest.files if not file.history]
    assert (newest.step, newest.certificate, files) == result(STEPS)
