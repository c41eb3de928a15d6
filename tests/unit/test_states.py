"""The transition table: what it must never do, whatever comes in whatever order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.budgets import Cause, Retry
from jobs.errors import ConflictError, IllegalTransition
from jobs.states import (
    TABLE,
    AttemptEnded,
    BackoffElapsed,
    Effect,
    Event,
    GangGranted,
    Job,
    ResumeRequested,
    State,
    StopRequested,
    WorkersReported,
    transition,
)

NOW = 1000.0


def job_factory(**overrides: object) -> Job:
    return replace(Job(id="j"), **overrides)  # type: ignore[arg-type]


def ended(cause: Cause, *, attempt: int = 1, progressed: bool = True) -> AttemptEnded:
    return AttemptEnded(attempt=attempt, cause=cause, progressed=progressed)


def after(job: Job, *happened: Event) -> Job:
    for event in happened:
        job, _ = transition(job, event, now=NOW)
    return job


def running(**overrides: object) -> Job:
    return after(job_factory(**overrides), GangGranted(), WorkersReported(attempt=1))


def test_granted_job_gets_the_next_attempt_number_and_is_launched() -> None:
    job, effects = transition(job_factory(attempt=4), GangGranted(), now=NOW)
    assert (job.state, job.attempt, effects) == (State.LAUNCHING, 5, (Effect.LAUNCH,))


def test_preempted_job_is_queued_again_at_once_and_spends_no_failure() -> None:
    job = after(running(), StopRequested(cause=Cause.PREEMPTED), ended(Cause.PREEMPTED, progressed=False))
    assert (job.state, job.stop_for, job.failures_in_row, job.stalled_in_row) == (State.QUEUED, None, 0, 0)


def test_crash_backs_off_twice_as_long_each_time_without_progress() -> None:
    job, waits = job_factory(retry=Retry(crash=10, no_progress=10, backoff_s=2)), []
    for attempt in range(1, 4):
        job = after(job, GangGranted(), ended(Cause.CRASH, attempt=attempt, progressed=False))
        assert job.state is State.BACKOFF and job.not_before is not None
        waits.append(job.not_before - NOW)
        job = after(job, BackoffElapsed())
    assert waits == [2, 4, 8]


def test_progress_starts_the_backoff_anew() -> None:
    job = running(retry=Retry(backoff_s=2), failures_in_row=5)
    assert after(job, ended(Cause.CRASH, progressed=True)).not_before == NOW + 2


@pytest.mark.parametrize("cause", [Cause.CRASH, Cause.INFRASTRUCTURE, Cause.NODE_LOST, Cause.HANG])
def test_budgets_are_kept_apart(cause: Cause) -> None:
    retry = Retry(crash=1, infrastructure=1, node_lost=1, hang=1, no_progress=None)
    once = running(retry=retry, spent={other: 9 for other in Cause if other is not cause})
    assert after(once, ended(cause)).state is State.BACKOFF
    assert after(replace(once, spent={cause: 1}), ended(cause)).state is State.FAILED


def test_crashes_without_a_newer_checkpoint_end_the_job() -> None:
    job = job_factory(retry=Retry(no_progress=1, crash=10))
    job = after(job, GangGranted(), ended(Cause.CRASH, progressed=False), BackoffElapsed(), GangGranted())
    job = after(job, ended(Cause.HANG, attempt=2, progressed=False))
    assert job.state is State.FAILED and "2 attempts in a row" in job.detail


def test_outages_in_a_row_spend_their_own_budget_and_no_other() -> None:
    job = job_factory(retry=Retry(no_progress=1, infrastructure=20))
    for attempt in range(1, 11):
        job = after(job, GangGranted(), ended(Cause.INFRASTRUCTURE, attempt=attempt, progressed=False))
        assert job.state is State.BACKOFF
        job = after(job, BackoffElapsed())


def test_program_that_drains_unasked_and_commits_nothing_backs_off_and_is_no_failure() -> None:
    job, waits = job_factory(retry=Retry(no_progress=1, crash=0, backoff_s=2)), []
    for attempt in range(1, 6):
        job = after(job, GangGranted(), ended(Cause.PREEMPTED, attempt=attempt, progressed=False))
        assert job.state is State.BACKOFF and job.not_before is not None
        waits.append(job.not_before - NOW)
        job = after(job, BackoffElapsed())
    assert waits == [2, 4, 8, 16, 32]
    job = after(job, GangGranted(), ended(Cause.PREEMPTED, attempt=6, progressed=True))
    assert job.state is State.QUEUED, "somebody ended it from outside, and it saved what it had"


@pytest.mark.parametrize("cause", [Cause.CONFIG, Cause.NO_REQUEUE])
def test_final_causes_are_never_retried(cause: Cause) -> None:
    assert after(running(), ended(cause)).state is State.FAILED


def test_cancel_wins_over_a_crash_during_the_drain() -> None:
    job = after(running(), StopRequested(cause=Cause.CANCELLED), ended(Cause.CRASH))
    assert (job.state, job.cause) == (State.CANCELLED, Cause.CANCELLED)


def test_job_that_finished_while_being_cancelled_has_succeeded() -> None:
    assert after(running(), StopRequested(cause=Cause.CANCELLED), ended(Cause.DONE)).state is State.SUCCEEDED


def test_cancel_overrides_a_preemption_under_way_without_stopping_twice() -> None:
    job = after(running(), StopRequested(cause=Cause.PREEMPTED))
    job, effects = transition(job, StopRequested(cause=Cause.CANCELLED), now=NOW)
    assert job.stop_for is Cause.CANCELLED and effects == ()
    assert after(job, ended(Cause.PREEMPTED)).state is State.CANCELLED


def test_words_of_a_replaced_attempt_are_discarded() -> None:
    job = job_factory(state=State.RUNNING, attempt=3)
    assert transition(job, ended(Cause.DONE, attempt=2), now=NOW) == (job, ())
    assert transition(job, WorkersReported(attempt=2), now=NOW) == (job, ())


def test_an_end_told_twice_counts_once() -> None:
    job = after(running(), ended(Cause.CRASH))
    assert transition(job, ended(Cause.CRASH), now=NOW) == (job, ())


def test_resume_keeps_the_attempt_number_and_clears_the_budgets() -> None:
    job = job_factory(state=State.FAILED, attempt=4, spent={Cause.CRASH: 4}, cause=Cause.CRASH)
    again = after(job, ResumeRequested())
    assert (again.state, again.attempt, again.spent, again.cause) == (State.QUEUED, 4, {}, None)


def test_what_a_user_may_not_ask_for_is_a_conflict_not_a_crash() -> None:
    with pytest.raises(ConflictError, match="succeeded"):
        transition(job_factory(state=State.SUCCEEDED), ResumeRequested(), now=NOW)
    with pytest.raises(ConflictError, match="cancelled already"):
        transition(job_factory(state=State.CANCELLED), StopRequested(cause=Cause.CANCELLED), now=NOW)


def test_what_the_table_does_not_name_is_illegal() -> None:
    with pytest.raises(IllegalTransition):
        transition(job_factory(), BackoffElapsed(), now=NOW)
    assert all(isinstance(state, State) for state, _ in TABLE)


_EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.just(GangGranted()),
    st.just(BackoffElapsed()),
    st.just(ResumeRequested()),
    st.builds(WorkersReported, attempt=st.integers(1, 6)),
    st.builds(StopRequested, cause=st.sampled_from([Cause.CANCELLED, Cause.PREEMPTED, Cause.TIME_LIMIT])),
    st.builds(AttemptEnded, attempt=st.integers(1, 6), cause=st.sampled_from(Cause), progressed=st.booleans()),
)


@given(st.lists(_EVENTS, max_size=40))
def test_no_order_of_events_breaks_the_invariants(happened: list[Event]) -> None:
    job, held = job_factory(), False
    for event in happened:
        before = job
        try:
            job, effects = transition(job, event, now=NOW)
        except (ConflictError, IllegalTransition):
            assert job == before
            continue
        assert job.attempt in (before.attempt, before.attempt + 1), "attempt numbers only grow, one by one"
        if Effect.LAUNCH in effects:
            assert not held, "at most one live attempt"
            held = True
        if Effect.RELEASE in effects:
            held = False
        assert held == job.state.active, "a gang is held exactly while an attempt is live"
        if before.state.final and job.state is not before.state:
            assert isinstance(event, ResumeRequested), "terminal is final but for a user's resume"
        assert (job.stop_for is not None) <= job.state.active
        assert (job.not_before is not None) == (job.state is State.BACKOFF)
        assert (job.cause is not None) == job.state.final
