"""Effects at the end of a job: the next agent's process and MLflow's run."""

from __future__ import annotations

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
