"""Whose word ends an attempt on a node that is silent: its lease, the provider or a new boot, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from cluster.gang import Node
from cluster.lease import MARGIN_S, Lease
from jobs.budgets import Cause
from jobs.states import State
from orchestrator.control.provider import Provider
from tests.support.scripted import LEASE_S, ScriptedProvider, World, report, silent


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.mark.parametrize("answer", ["pending", "unreachable"])
def test_agent_that_does_not_answer_but_keeps_its_lease_is_unreachable_for_ever(world: World, answer: str) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=5, phase="training")]
    world.loop.tick()
    world.gangs.views["j"] = [silent(answer)]
    lease = Lease(world.gangs.register, ("j", 1, 0), LEASE_S)
    for _ in range(20):
        world.clock.now += LEASE_S
        lease.renew()
        world.loop.tick()
        row = world.store.get("j")
        assert row.state is State.RUNNING and row.unreachable_since is not None
    assert world.gangs.killed == [] and world.gangs.register.revoked == set()


@pytest.mark.parametrize("answer", ["pending", "unreachable"])
def test_agent_that_does_not_answer_is_lost_once_its_lease_is_over_and_not_before(world: World, answer: str) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=5, phase="training")]
    world.loop.tick()
    Lease(world.gangs.register, ("j", 1, 0), LEASE_S).renew()
    world.gangs.views["j"] = [silent(answer)]
    world.loop.tick()
    world.clock.now += LEASE_S + MARGIN_S
    world.loop.tick()
    assert world.state() is State.RUNNING
    world.clock.now += 1
    world.loop.tick()
    assert world.store.attempt("j", 1).cause == Cause.NODE_LOST.value
    assert "lease" in world.store.attempt("j", 1).detail
    world.clock.now += 60
    world.loop.tick()
    assert world.state() is State.QUEUED, "nothing is placed on a node that does not answer"
    world.gangs.answering = True
    world.tick_until(lambda: world.state() is State.LAUNCHING)


def test_node_that_dies_before_its_agent_came_is_lost_once_ray_says_so(world: World) -> None:
    """Not after the whole time to start. No renewal in a lease, and none after the revocation: nothing was granted."""
    world.launched()
    world.gangs.views["j"] = [silent("pending")]
    for _ in range(10):
        world.clock.now += LEASE_S
        world.loop.tick()
        assert world.state() is State.LAUNCHING, "Ray may take its time to place it"
    world.gangs.seen_nodes = [Node(id="n2", host="h2", address="10.0.0.2", cpus=2.0, npus=0.0, alive=True)]
    world.loop.tick()
    assert world.store.attempt("j", 1).cause == Cause.NODE_LOST.value
    assert ("j", 1) in world.gangs.register.revoked, "an agent that still comes up starts nothing"


def gone_from_ray(world: World) -> None:
    """A job whose node Ray no longer lists; another one is there."""
    world.launched()
    world.gangs.views["j"] = [silent("dead")]
    world.gangs.seen_nodes = [Node(id="n2", host="h2", address="10.0.0.2", cpus=2.0, npus=0.0, alive=True)]
    world.loop.tick()


def test_lost_node_holds_the_next_attempt_back_until_its_lease_is_over(world: World) -> None:
    gone_from_ray(world)
    world.clock.now += LEASE_S + MARGIN_S
    world.loop.tick()
    assert world.state() is State.LAUNCHING and world.gangs.certified == []
    world.clock.now += 1
    world.loop.tick()
    assert world.state() is State.BACKOFF
    assert world.store.attempt("j", 1).cause == Cause.NODE_LOST.value


def test_node_that_ray_calls_dead_but_that_lives_is_revoked_and_waited_for(world: World) -> None:
    """Its raylet was stopped, say: the agent goes on renewing until it reads the revocation."""
    gone_from_ray(world)
    lease = Lease(world.gangs.register, ("j", 1, 0), LEASE_S)
    assert lease.renew() is None, "revoked as soon as Ray had said so"
    world.clock.now += LEASE_S + MARGIN_S + 1
    world.loop.tick()
    assert world.state() is State.LAUNCHING, "the lease has moved since: the count begins again"


def test_provider_that_says_gone_ends_the_wait_at_once(world: World) -> None:
    world.loop.following.teardown.provider = cast(Provider, ScriptedProvider({"h1"}))
    gone_from_ray(world)
    assert world.state() is State.LAUNCHING, "it may just have renewed"
    world.clock.now += LEASE_S / 5
    world.loop.tick()
    assert world.state() is State.BACKOFF
    assert "provider" in world.store.attempt("j", 1).detail
    assert ("j", 1) in world.gangs.register.revoked


def test_provider_is_believed_before_ray_once_a_renewal_is_missed_and_never_against_one(world: World) -> None:
    world.loop.following.teardown.provider = cast(Provider, ScriptedProvider({"h1"}))
    world.launched()
    lease = Lease(world.gangs.register, ("j", 1, 0), LEASE_S)
    world.gangs.views["j"] = [silent("unreachable")]
    for _ in range(5):
        assert lease.renew() is not None
        world.loop.tick()
        world.clock.now += lease.every_s
        world.loop.tick()
        assert world.state() is State.LAUNCHING, "whoever renews its lease is there"
    world.clock.now += lease.every_s
    world.loop.tick()
    assert world.state() is State.BACKOFF and "provider" in world.store.attempt("j", 1).detail


def test_renewal_between_the_providers_word_and_its_use_saves_the_attempt_for_its_lease(world: World) -> None:
    lying = ScriptedProvider({"h1"})
    world.loop.following.teardown.provider = cast(Provider, lying)
    world.launched()
    lease = Lease(world.gangs.register, ("j", 1, 0), LEASE_S)
    assert lease.renew() is not None
    world.gangs.views["j"] = [silent("unreachable")]
    world.loop.tick()
    began = world.clock()
    world.clock.now += LEASE_S / 5
    ask = lying.is_gone

    def renewed_meanwhile(host: str, address: str, *, since: float) -> bool:
        lease.renew()
        return ask(host, address, since=since)

    lying.is_gone = renewed_meanwhile  # type: ignore[method-assign]
    world.loop.tick()
    assert world.state() is State.LAUNCHING and lying.since == [began]
    assert lease.renew() is None, "and it ends by itself, for it was revoked"


def test_host_that_is_back_booted_anew_ends_the_wait_for_its_lease(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [silent("unreachable")]
    world.loop.tick()
    again = Node(id="n1b", host="h1", address="10.0.0.1", cpus=2.0, npus=0.0, alive=True)
    world.gangs.seen_nodes = [*world.gangs.seen_nodes, again]
    world.clock.now += LEASE_S / 5
    world.loop.tick()
    (seen,) = [node for node in world.store.nodes() if node["id"] == "n1b"]
    world.store.note_node(
        "n1b", incarnation="boot/2", preflight={**(seen["preflight"] or {}), "looked_at": world.clock()}
    )
    world.loop.tick()
    assert world.state() is State.BACKOFF and "booted anew" in world.store.attempt("j", 1).detail


def test_former_life_that_ray_still_lists_is_no_rebirth_of_the_host_that_has_the_attempt(world: World) -> None:
    old, new = world.gangs.seen_nodes[0], Node(id="n1b", host="h1", address="10.0.0.1", cpus=2.0, npus=0.0, alive=True)
    world.loop.tick()
    world.gangs.seen_nodes = [old, new]
    world.clock.now += 5
    world.loop.tick()
    (facts_of_old,) = [node for node in world.store.nodes() if node["id"] == "n1"]
    assert facts_of_old["incarnation"]
    seen = {**facts_of_old["preflight"], "looked_at": world.clock()}
    world.store.note_node("n1b", incarnation="boot/2", preflight=seen, problem="")
    world.clock.now += 1
    world.launched()
    assert [node["id"] for node in world.store.attempt("j", 1).nodes] == ["n1b"]
    world.gangs.views["j"] = [silent("unreachable")]
    for _ in range(4):
        world.loop.tick()
        world.clock.now += LEASE_S / 5
    assert world.state() is State.LAUNCHING, "its lease decides"


def test_gang_that_lost_a_node_before_it_was_placed_waits_for_no_agent_that_ray_cannot_place(world: World) -> None:
    """Ray listed it when the gang was granted; without it there is no placement group, so no agent ever comes."""
    h1, h2 = (Node(id=f"n{i}", host=f"h{i}", address=f"10.0.0.{i}", cpus=2.0, npus=0.0, alive=True) for i in (1, 2))
    world.gangs.seen_nodes = [h1, h2]
    world.launched(gang={"nodes": 2, "workers_per_node": 1})
    world.gangs.views["j"] = [silent("pending", 0), silent("pending", 1)]
    world.loop.tick()
    world.gangs.seen_nodes = [h1]
    began = world.clock()
    while world.store.attempt("j", 1).ended_at is None and world.clock() - began < 2 * LEASE_S:
        world.clock.now += 1
        world.loop.tick()
    assert world.store.attempt("j", 1).cause == Cause.NODE_LOST.value
