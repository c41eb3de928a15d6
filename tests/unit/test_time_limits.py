"""What waits for a clock, while clocks are set forward and back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.budgets import Cause
from jobs.states import Effect, State, StopRequested
from orchestrator.control.effects import Effects
from tests.support.scripted import World, ended, report


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
def test_master_port_that_a_stranger_took_holds_the_next_attempt_up_for_half_a_minute_only(
    world: World, ahead_s: float
) -> None:
    """Whatever the node's clock says, by which its record is dated."""
    world.launched()
    world.gangs.also = {"port_free": False, "at": world.clock() + ahead_s}
    world.gangs.views["j"] = [report(ended=ended(1, **world.gangs.also))]
    world.tick_until(lambda: len(world.gangs.certified) > 2)
    assert world.store.attempt("j", 1).ended_at is None
    world.clock.now += 31
    world.tick_until(lambda: world.store.attempt("j", 1).ended_at is not None)


def test_backoff_ends_soon_although_the_clock_was_set_back_an_hour(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(ended=ended(1))]
    world.tick_until(lambda: world.state() is State.BACKOFF)
    world.loop.tick()
    assert world.state() is State.BACKOFF, "its time has not come"
    world.clock.now -= 3600
    world.loop.tick()
    assert world.state() is not State.BACKOFF


def test_effect_is_tried_again_soon_although_the_clock_was_set_back_an_hour(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    effects = Effects(world.store, nothing, nothing, nothing, code="")
    ran: list[Any] = []
    monkeypatch.setattr(effects, "_run", ran.append)
    world.submit()
    world.loop.tick()
    (launch,) = world.store.pending_effects("j")
    world.store.effect_failed(launch, "no answer", retry_at=time.time() + 29)
    effects.step()
    assert ran == [] and effects._running == {}, "its time has not come"
    world.store.effect_failed(launch, "no answer", retry_at=time.time() + 3600)
    effects.step()
    effects._running["j"].result(30)
    assert [effect.effect for effect in ran] == [Effect.LAUNCH]


def test_grace_counts_from_when_the_workers_were_told(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=5, phase="training")]
    world.store.request("j", StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    world.clock.now += 3600
    world.loop.tick()
    assert world.gangs.stopped == [], "the stop itself is still pending: no force before it"


def test_workers_that_never_report_are_stopped_and_count_as_infrastructure(world: World) -> None:
    world.launched(limits={"start_timeout_s": 60})
    world.gangs.views["j"] = [report()]
    world.clock.now += 61
    world.loop.tick()
    assert world.gangs.stopped == [("j", "start_timeout", 0.0)]
    world.gangs.views["j"] = [report(ended=ended(75, stop_why="start_timeout"))]
    world.loop.tick()
    assert world.store.attempt("j", 1).cause == Cause.INFRASTRUCTURE.value


def test_agent_that_answers_but_does_not_end_is_killed_and_its_node_swept(world: World) -> None:
    """It waits for a share that is gone, say."""
    world.launched(limits={"start_timeout_s": 60})
    world.gangs.views["j"] = [report()]
    world.clock.now += 61
    for _ in range(7):
        world.loop.tick()
        assert world.gangs.killed == [], "it was told, and gets its time"
        world.clock.now += 10
    world.tick_until(lambda: world.state() is State.BACKOFF)
    assert world.gangs.killed and world.gangs.certified == ["j"]
    attempt = world.store.attempt("j", 1)
    assert attempt.cause == Cause.INFRASTRUCTURE.value and "did not end when it was told to" in attempt.detail


def test_running_time_before_a_resume_does_not_count_against_the_limit(world: World) -> None:
    from jobs.states import ResumeRequested

    world.launched(limits={"wall_time_s": 100})
    world.gangs.views["j"] = [report(step=1, phase="training")]
    world.clock.now += 101
    world.loop.tick()
    assert world.store.get("j").job.stop_for is Cause.TIME_LIMIT
    world.gangs.views["j"] = [report(ended=ended(75, at=world.clock()))]
    world.loop.tick()
    assert world.state() is State.FAILED
    world.store.request("j", ResumeRequested(), action="resume_requested")
    world.loop.tick()
    world.finish_launch()
    world.gangs.views["j"] = [report(step=2, phase="training")]
    world.clock.now += 50
    world.loop.tick()
    assert world.store.get("j").job.stop_for is None


@pytest.mark.parametrize("by_s", [7200.0, -7200.0])
def test_wall_clock_that_jumps_on_the_control_planes_host_ends_no_healthy_job(world: World, by_s: float) -> None:
    world.launched("slow", limits={"start_timeout_s": 60})
    world.gangs.views["slow"] = [report()]
    world.loop.tick()
    world.jump(by_s)
    world.loop.tick()
    assert world.gangs.stopped == [], "it has had no time to start"
    world.gangs.views["slow"] = [report(step=1, phase="training")]
    world.loop.tick()
    assert world.state("slow") is State.RUNNING
    world.jump(by_s)
    world.clock.now += 50
    world.loop.tick()
    world.store.request("slow", StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    world.done("slow", Effect.STOP)
    world.loop.tick()
    world.jump(by_s)
    world.loop.tick()
    assert world.gangs.stopped == [], "its grace is not over"
    world.clock.now += 3600
    world.loop.tick()
    assert world.gangs.stopped == [("slow", "cancelled", 0.0)], "and a limit still is one"


@pytest.mark.parametrize("by_s", [7200.0, -7200.0])
def test_limit_of_running_time_counts_no_jump_of_the_wall_clock(world: World, by_s: float) -> None:
    world.launched(limits={"wall_time_s": 100})
    world.gangs.views["j"] = [report(step=1, phase="training")]
    world.loop.tick()
    world.jump(by_s)
    world.clock.now += 90
    world.loop.tick()
    assert world.store.get("j").job.stop_for is None
    world.clock.now += 11
    world.loop.tick()
    assert world.store.get("j").job.stop_for is Cause.TIME_LIMIT
