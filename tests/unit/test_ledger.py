"""The ledger: names for every second, adding up to the job's age."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.spec import build_spec
from jobs.states import Job, State
from orchestrator.ledger import NAMES, ledger
from orchestrator.store import AttemptRow, JobRow

JOB = JobRow(
    job=Job(id="j", state=State.SUCCEEDED, attempt=2),
    spec=build_spec({"name": "j", "program": {"module": "m"}}),
    version=1,
    submitted_at=100.0,
    finished_at=300.0,
    waiting="",
    checkpoint={"manifest": "m", "step": 100, "sha256": "0"},
    metrics={},
    init_from=None,
    store_uri="file:///s",
    mlflow_run=None,
    unreachable_since=None,
)
ATTEMPT = AttemptRow(
    job_id="j",
    number=1,
    token="t",
    nodes=[],
    plan=None,
    granted_at=110.0,
    ready_at=115.0,
    first_step_at=140.0,
    stop_at=None,
    ended_at=200.0,
    cause="crash",
    detail="",
    from_step=0,
    to_step=60,
    resumed={"manifest": None, "step": 0},
    quarantined=[],
    seconds={"compiling": 10.0, "training": 40.0, "validating": 5.0, "checkpoint_stall": 1.0},
    view={},
)


def test_every_second_of_a_crashed_and_resumed_job_has_its_name() -> None:
    second = replace(
        ATTEMPT,
        number=2,
        granted_at=220.0,
        ready_at=225.0,
        first_step_at=250.0,
        ended_at=300.0,
        from_step=30,
        to_step=100,
    )
    second = replace(second, resumed={"manifest": "m", "step": 30}, seconds={"compiling": 10.0, "training": 40.0})
    seconds = ledger(JOB, [ATTEMPT, second], now=999.0, idle_s=2.0)
    assert seconds == {
        "queued": 28.0,
        "provisioning": 10.0,
        "starting": 30.0,
        "compiling": 20.0,
        "training": 60.0,
        "validating": 5.0,
        "checkpoint_stall": 1.0,
        "lost_work": 20.0,  # steps 31 to 60 of 60, half of its 40 s
        "draining": 24.0,
        "idle": 2.0,
    }
    assert sum(seconds.values()) == 200.0


def test_attempt_that_never_stepped_was_starting() -> None:
    started = replace(ATTEMPT, first_step_at=None, to_step=0, seconds={}, resumed=None)
    seconds = ledger(JOB, [started], now=0.0)
    assert (seconds["provisioning"], seconds["starting"], seconds["lost_work"]) == (5.0, 85.0, 0.0)


@given(
    times=st.lists(st.floats(0, 100), min_size=9, max_size=9),
    own=st.dictionaries(st.sampled_from(["compiling", "training", "validating", "checkpoint_stall"]), st.floats(0, 90)),
    steps=st.lists(st.integers(0, 50), min_size=3, max_size=3),
    missing=st.sets(st.sampled_from(["ready_at", "first_step_at", "stop_at", "ended_at"])),
)
def test_names_always_add_up_to_the_age(
    times: list[float], own: dict[str, float], steps: list[int], missing: set[str]
) -> None:
    submitted, granted, ready, first, stop, ended, again, finished, _ = sorted(times)
    row = replace(JOB, submitted_at=submitted, finished_at=finished)
    one = replace(
        ATTEMPT,
        granted_at=granted,
        ready_at=ready,
        first_step_at=first,
        stop_at=stop,
        ended_at=ended,
        to_step=steps[0],
        seconds=own,
    )
    two = replace(ATTEMPT, number=2, granted_at=again, ready_at=None, first_step_at=None, ended_at=None, seconds={})
    nothing: dict[str, Any] = dict.fromkeys(missing - {"ended_at"})
    two = replace(two, from_step=steps[1], to_step=steps[2], **nothing)
    seconds = ledger(row, [one, two], now=finished)
    assert set(seconds) == set(NAMES)
    assert all(value >= 0 for value in seconds.values())
    assert sum(seconds.values()) == pytest.approx(finished - submitted, abs=0.02)
