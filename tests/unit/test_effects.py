"""Effects at the end of a job: the next agent's process and MLflow's run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from cluster.gang import Gangs
from jobs.budgets import Cause
from jobs.errors import ClusterUnreachable
from jobs.states import Effect, State, StopRequested
from orchestrator.control.effects import Effects
from orchestrator.settings import Home
from orchestrator.store import JobRow
from tests.support.scripted import ClosedRuns, World, ended, report


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def test_process_for_the_next_agent_is_asked_for_at_the_end_of_a_job(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=1, phase="training", first_step_at=1002.0)]
    world.loop.tick()
    assert world.gangs.spares == [], "ranks need every CPU"
    world.gangs.views["j"] = [report(ended=ended())]
    world.tick_until(lambda: world.state() is State.SUCCEEDED)
    world.done("j", Effect.RELEASE)
    world.gangs.spare_error = ClusterUnreachable("Ray is gone")
    assert world.closed_by_effects() == ["j"], "MLflow does not wait for Ray"
    assert world.gangs.spares == [("j", ("n1",))]


def test_process_for_the_next_agent_is_asked_for_once_however_long_mlflow_is_down(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(ended=ended())]
    world.tick_until(lambda: world.state() is State.SUCCEEDED)
    world.done("j", Effect.RELEASE)
    tracking = ClosedRuns(down=True)
    effects = Effects(world.store, cast(Gangs, world.gangs), tracking, cast(Home, None), code="")
    for _ in range(3):
        (close,) = world.store.pending_effects("j")
        effects._run(close)
    tracking.down = False
    assert world.closed_by_effects() == ["j"] and len(world.gangs.spares) == 1


def test_job_that_was_cancelled_before_it_had_a_node_is_closed(world: World) -> None:
    world.submit()
    world.store.request("j", StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    assert world.closed_by_effects() == ["j"] and world.gangs.spares == []


class StuckRuns(ClosedRuns):
    """An MLflow that takes connections and answers none, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def ensure_run(self, row: JobRow) -> str:
        assert self.over.wait(60)
        return "run"

    def close(self, row: JobRow) -> None:
        assert self.over.wait(60)
        super().close(row)


def test_mlflow_that_answers_nobody_holds_up_no_launch_and_no_stop(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.control.effects._TRACKING_S", 0.05)
    tracking = StuckRuns()
    ending = [f"done-{number}" for number in range(6)]
    for job in ending:
        world.submit(job)
        world.store.request(job, StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    effects = Effects(world.store, cast(Gangs, world.gangs), tracking, Home(tmp_path), code="")
    try:
        effects.step()
        world.submit()
        world.loop.tick()
        effects.step()
        effects._running["j"].result(30)
        assert [plan.job for plan in world.gangs.launches] == ["j"] and tracking.closed == []
        assert "did not answer" in str([e for e in world.store.events("j") if e["action"] == "tracking_unavailable"])
    finally:
        tracking.over.set()
        for future in effects._running.values():
            future.result(30)
        effects.shutdown()
    assert sorted(tracking.closed) == ending


def test_launch_that_is_asked_for_again_keeps_the_plan_that_agents_may_run(world: World, tmp_path: Path) -> None:
    """Its control plane was killed after the launch, and came back with another lease."""
    (tmp_path / "config.yaml").write_text("lease_s: 60\n")
    tracking = StuckRuns()
    tracking.over.set()
    world.submit()
    world.loop.tick()
    (launch,) = world.store.pending_effects("j")
    Effects(world.store, cast(Gangs, world.gangs), tracking, Home(tmp_path), code="old")._do(launch)
    (tmp_path / "config.yaml").write_text("lease_s: 15\n")
    Effects(world.store, cast(Gangs, world.gangs), tracking, Home(tmp_path), code="new")._do(launch)
    first, again = world.gangs.launches
    assert first == again and (again.lease_s, again.code) == (60.0, "old")
    assert (world.store.attempt("j", 1).plan or {})["lease_s"] == 60.0


def test_next_attempt_sweeps_what_any_earlier_one_may_have_left_on_a_node_that_was_lost(
    world: World, tmp_path: Path
) -> None:
    """Whatever the attempt itself ended for: it was preempted while one of its nodes was cut off, say."""
    row = world.launched()
    world.store.log(row, "node_lost", {"host": "h1", "seen": "its lease ran out"})
    world.gangs.views["j"] = [report(ended=ended(1))]
    world.tick_until(lambda: world.state() is State.BACKOFF)
    world.clock.now += 60
    world.tick_until(lambda: world.state() is State.LAUNCHING)
    tracking = StuckRuns()
    tracking.over.set()
    (launch,) = [effect for effect in world.store.pending_effects("j") if effect.effect is Effect.LAUNCH]
    Effects(world.store, cast(Gangs, world.gangs), tracking, Home(tmp_path), code="")._do(launch)
    assert world.gangs.launches[0].earlier_tokens == (world.store.attempt("j", 1).token,)
