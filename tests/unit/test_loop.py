"""The loop against a cluster that lies: late answers, silence, leftovers. The store is real, the clock is ours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.gang import Node, NodeView
from jobs.budgets import Cause
from jobs.errors import ClusterUnreachable
from jobs.states import Effect, State, StopRequested
from orchestrator.store import JobRow
from tests.support.scripted import LEASE_S, World, ended, report, silent


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def launched_on_two_hosts(world: World) -> None:
    hosts = [Node(id=f"n{i}", host=f"h{i}", address=f"10.0.0.{i}", cpus=2.0, npus=0.0, alive=True) for i in (1, 2)]
    world.gangs.seen_nodes = hosts
    world.launched(gang={"nodes": 2, "workers_per_node": 1})


def test_agent_that_is_missing_while_it_is_being_created_says_nothing(world: World) -> None:
    """The poll saw no agent, the launch finished during the poll: the old view must not end the new attempt."""
    world.submit()
    world.loop.tick()
    world.gangs.views["j"] = [silent("dead")]
    world.gangs.during_poll = world.finish_launch
    world.loop.tick()
    assert world.state() is State.LAUNCHING and world.gangs.certified == []


def test_cluster_that_does_not_answer_changes_no_state(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=5, phase="training")]
    world.loop.tick()
    world.gangs.unreachable = True
    for _ in range(5):
        world.clock.now += 100_000
        with pytest.raises(ClusterUnreachable):
            world.loop.tick()
    row = world.store.get("j")
    assert (row.state, row.job.attempt) == (State.RUNNING, 1) and row.unreachable_since is not None
    world.gangs.unreachable = False
    world.loop.tick()
    assert world.store.get("j").unreachable_since is None


def test_dead_agent_ends_the_attempt_only_with_a_certificate_of_its_node(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [silent("dead")]
    world.tick_until(lambda: world.state() is State.BACKOFF)
    assert world.gangs.certified == ["j"]


def test_process_that_survives_its_attempt_holds_the_next_one_back(world: World) -> None:
    world.launched()
    world.gangs.survivors = [4711]
    world.gangs.views["j"] = [report(ended=ended(1, survivors=[4711]))]
    world.tick_until(lambda: len(world.gangs.certified) > 2)
    assert world.state() is State.LAUNCHING
    assert [e["action"] for e in world.store.events("j")].count("teardown_incomplete") == 1
    world.gangs.survivors = []
    world.tick_until(lambda: world.state() is State.BACKOFF)


@pytest.mark.parametrize("left", [{"survivors": [4711]}, {"devices_busy": [0]}])
def test_node_that_says_that_it_is_not_free_is_not_lost_by_its_lease(world: World, left: dict[str, Any]) -> None:
    """Its agent was killed for the sweep, so nothing renews any more: that proves nothing about what the sweep saw."""
    world.launched()
    world.gangs.survivors, world.gangs.also = left.get("survivors", []), left
    world.gangs.views["j"] = [report(ended=ended(1, **left))]
    world.tick_until(lambda: len(world.gangs.certified) > 1)
    world.gangs.views["j"] = [silent("dead")]
    for _ in range(8):
        world.clock.now += LEASE_S
        world.loop.tick()
        assert world.state() is State.LAUNCHING
    world.gangs.survivors, world.gangs.also = [], {}
    world.tick_until(lambda: world.state() is State.BACKOFF)
    assert world.store.attempt("j", 1).cause == Cause.INFRASTRUCTURE.value


def test_control_plane_that_starts_anew_knows_who_said_that_it_is_not_free(world: World) -> None:
    world.launched()
    world.gangs.survivors = [4711]
    world.gangs.views["j"] = [report(ended=ended(1, survivors=[4711]))]
    world.tick_until(lambda: len(world.gangs.certified) > 1)
    world.gangs.views["j"] = [silent("dead")]
    world.restart()
    never = Future[Any]()  # a certificate that takes its time
    world.loop.following.teardown._certifying[("j", 1, 0)] = never
    for _ in range(8):
        world.clock.now += LEASE_S
        world.loop.tick()
        assert world.state() is State.LAUNCHING


def test_control_plane_that_starts_anew_takes_a_nodes_newest_word(world: World) -> None:
    launched_on_two_hosts(world)

    def newest() -> bool:
        world.restart()
        return world.loop.following.teardown._said_unfree(world.store.get("j"), ("j", 1, 0))

    for _ in range(2):
        world.gangs.survivors = [4711]
        goes_on = replace(report(step=5, phase="training"), node_rank=1)
        world.gangs.views["j"] = [report(ended=ended(1, survivors=[4711])), goes_on]
        asked = len(world.gangs.certified)
        world.tick_until(lambda: len(world.gangs.certified) > asked + 1)  # noqa: B023 - it is over by then
        assert newest()
        world.gangs.survivors = []
        world.gangs.views["j"] = [report(ended=ended(1)), goes_on]
        world.loop.tick()
        assert not newest()


def test_node_that_was_not_free_and_then_fell_silent_is_lost_by_its_lease(world: World) -> None:
    world.launched()
    world.gangs.survivors = [4711]
    world.gangs.views["j"] = [report(ended=ended(1, survivors=[4711]))]
    world.tick_until(lambda: len(world.gangs.certified) > 1)
    world.gangs.views["j"] = [silent("dead")]
    world.gangs.seen_nodes = [Node(id="n2", host="h2", address="10.0.0.2", cpus=2.0, npus=0.0, alive=True)]
    for _ in range(3):
        world.loop.tick()
        world.clock.now += LEASE_S
    world.tick_until(lambda: world.store.attempt("j", 1).cause == Cause.NODE_LOST.value)


def test_node_that_lost_its_agent_for_the_lease_ends_the_gang_although_it_names_no_fault(world: World) -> None:
    """The word that it meant for the other nodes was lost with its cable."""
    launched_on_two_hosts(world)
    quiet = report(ended=ended(stop_why="lease_over", outcomes=[]))
    world.gangs.views["j"] = [replace(report(step=5, phase="training"), node_rank=1), quiet]
    world.loop.tick()
    assert world.gangs.stopped == [("j", "peer_fault", 0.0)]


def test_job_cancelled_before_its_launch_ends_without_one(world: World) -> None:
    world.submit()
    world.loop.tick()
    world.store.request("j", StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    world.done("j", Effect.LAUNCH)  # as effects do when a stop came first: nothing was started
    world.loop.tick()
    assert world.state() is State.CANCELLED


def test_bad_job_does_not_keep_the_others_from_going_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.gangs.seen_nodes[0] = Node(id="n1", host="h1", address="10.0.0.1", cpus=4.0, npus=0.0, alive=True)
    world.submit("bad")
    world.launched("good")
    world.finish_launch("bad")
    world.gangs.views = {"good": [report(step=3, phase="training")], "bad": [report(step=3, phase="training")]}
    follow = world.loop.following.follow

    def broken(row: JobRow, views: list[NodeView]) -> None:
        if row.id == "bad":
            raise RuntimeError("a bug")
        follow(row, views)

    monkeypatch.setattr(world.loop.following, "follow", broken)
    world.loop.tick()
    assert (world.state("good"), world.state("bad")) == (State.RUNNING, State.LAUNCHING)


def test_lost_checkpoint_of_a_dead_rank_zero_still_counts_as_progress(world: World) -> None:
    world.launched()
    checkpoint = {"manifest": "manifests/000001-000000020.json", "step": 20, "sha256": "0"}
    resumed = {"manifest": None, "step": 0}
    world.gangs.views["j"] = [report(step=25, phase="training", checkpoint=checkpoint, resumed=resumed)]
    world.loop.tick()
    world.gangs.views["j"] = [report(ended=ended(1))]
    world.loop.tick()
    row = world.store.get("j")
    assert row.checkpoint == checkpoint and row.job.stalled_in_row == 0
    assert world.store.attempt("j", 1).to_step == 25
