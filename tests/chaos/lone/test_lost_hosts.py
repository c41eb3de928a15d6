"""A host that is lost: seen by our own heartbeats, believed only with proof, survived by the job."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from orchestrator.store import Store
from tests.chaos.lone.conftest import LEASE_S
from tests.support.ray_hosts import Cluster, all_are_heard

STEPS = 220
PROGRAM = ("--steps", STEPS, "--step_s", 0.1, "--commit_every", 20, "--crawl_at", 60)  # beyond a lease


def training_away_from_the_head(cluster: Cluster) -> tuple[str, int, int]:
    """A job past its first checkpoint; a host of it other than the head's, and its node rank."""
    job = cluster.submit(*PROGRAM)
    status = cluster.wait(job, lambda s: s["progress"]["step"] > 25 and s["checkpoint"] and all_are_heard(s, 2))
    hosts = status["attempts"][0]["hosts"]
    rank = next(rank for rank, host in enumerate(hosts) if host != "rexhost1")
    return job, int(hosts[rank].removeprefix("rexhost")), rank


def went_on(cluster: Cluster, job: str, *, says: str) -> dict[str, Any]:
    ended = cluster.finish(job)
    first, second = ended["attempts"]
    assert (ended["state"], first["cause"], second["cause"]) == ("succeeded", "node_lost", "done"), ended
    assert says in first["detail"] and second["from_step"] >= 20
    assert cluster.left_over() == []
    return ended


def assert_bits_of_an_undisturbed_run(cluster: Cluster, job: str) -> None:
    row = Store(cluster.home.database_url).get(job)
    store = CheckpointStore(open_store(row.store_uri, row.commit_protocol), job)
    newest, state = store.newest(), b""
    assert newest is not None and newest.step == STEPS
    for step in range(1, STEPS + 1):
        state = hashlib.sha256(state + str(step).encode()).digest()
    assert store.read(newest, "state") == state


def test_cut_off_host_ends_itself_before_the_next_attempt_begins(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence: Ray would believe for a minute that the host is there, and its workers would count on for longer."""
    job, host, rank = training_away_from_the_head(cluster)
    cluster.hosts.cut(host)
    went_on(cluster, job, says=f"its lease of {LEASE_S:g} s ran out")
    ended = cluster.record(job, 1, rank, "ended.json")
    assert ended["stop_why"] == "lease_over" and ended["survivors"] == []
    began = min(cluster.record(job, 2, node, "start.json")["at"] for node in (0, 1))
    assert ended["at"] < began, "the two attempts overlapped"
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    assert_bits_of_an_undisturbed_run(cluster, job)
    cluster.renew(host)  # not merely healed: Ray may call its node dead up to a minute later


def test_host_that_the_provider_calls_gone_is_not_waited_for(cluster: Cluster) -> None:
    job, host, _ = training_away_from_the_head(cluster)
    gone = cluster.folder / "tmp" / f"gone-rexhost{host}"  # /tmp of the first host, where the control plane asks
    gone.touch()  # before: the first question has to find it, for the lease is short here
    cluster.hosts.kill(host)
    went_on(cluster, job, says="the provider says that it is gone")
    gone.unlink()
    cluster.renew(host)
