"""The job's states, and the one function that moves a job from one to the next.

Events are what happened (past tense), effects what is to be done about it (imperative). `transition` is pure: no
clock, no randomness, no logging. What the table does not name is illegal; what a replaced attempt says is discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from jobs.budgets import Cause, Retry
from jobs.errors import ConflictError, IllegalTransition


class State(str, Enum):
    QUEUED = "queued"  # waits for a gang
    LAUNCHING = "launching"  # has its gang, workers are being started
    RUNNING = "running"  # workers have reported
    BACKOFF = "backoff"  # waits after a failure, holds nothing
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)

    @property
    def active(self) -> bool:
        """Has a live attempt, which holds a gang."""
        return self in (State.LAUNCHING, State.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What of a job the rules need. `stop_for` is a wish: why its running attempt is to end."""

    id: str
    state: State = State.QUEUED
    attempt: int = 0  # the newest attempt's number, 0 before the first
    retry: Retry = Retry()
    stop_for: Cause | None = None
    spent: Mapping[Cause, int] = field(default_factory=dict)  # attempts ended, by cause
    failures_in_row: int = 0  # attempts in a row that failed, whatever the cause
    stalled_in_row: int = 0  # of these, crashes and hangs without a newer checkpoint
    not_before: float | None = None  # Unix time, in backoff
    cause: Cause | None = None  # why a final job ended
    detail: str = ""


# ---- events


@dataclass(frozen=True, slots=True, kw_only=True)
class GangGranted:
    """The scheduler gave the job its nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersReported:
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    """Every node certified its teardown (or is confirmed dead). `progressed`: a newer checkpoint was committed."""

    attempt: int
    cause: Cause
    progressed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """Somebody wants the job's attempt to end: cause is cancelled, preempted or time_limit."""

    cause: Cause
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequested:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffElapsed:
    pass


Event = GangGranted | WorkersReported | AttemptEnded | StopRequested | ResumeRequested | BackoffElapsed

# ---- effects


class Effect(str, Enum):
    """What is to be done; idempotent, keyed by (job, attempt)."""

    LAUNCH = "launch_attempt"
    STOP = "stop_attempt"
    RELEASE = "release_gang"
    CLOSE_TRACKING = "close_tracking"


Result = tuple[Job, tuple[Effect, ...]]

# ---- rules


def _granted(job: Job, event: GangGranted, now: float) -> Result:
    return replace(job, state=State.LAUNCHING, attempt=job.attempt + 1, stop_for=None, not_before=None), (
        Effect.LAUNCH,
    )


def _reported(job: Job, event: WorkersReported, now: float) -> Result:
    return replace(job, state=State.RUNNING), ()


def _unchanged(job: Job, event: Event, now: float) -> Result:
    return job, ()


def _stop_active(job: Job, event: StopRequested, now: float) -> Result:
    """A cancel outranks a preemption under way; anything else asked twice is asked once."""
    if job.stop_for is None:
        return replace(job, stop_for=event.cause, detail=event.detail), (Effect.STOP,)
    if event.cause is Cause.CANCELLED:
        return replace(job, stop_for=event.cause, detail=event.detail), ()
    return job, ()


def _stop_waiting(job: Job, event: StopRequested, now: float) -> Result:
    if event.cause is Cause.PREEMPTED:
        return job, ()  # holds nothing that could be taken
    state = State.CANCELLED if event.cause is Cause.CANCELLED else State.FAILED
    return _finish(job, state, event.cause, event.detail, (Effect.CLOSE_TRACKING,))


def _finish(job: Job, state: State, cause: Cause, detail: str, effects: tuple[Effect, ...]) -> Result:
    return replace(job, state=state, cause=cause, detail=detail, stop_for=None, not_before=None), effects


def _ended(job: Job, event: AttemptEnded, now: float) -> Result:
    spent = {**job.spent, event.cause: job.spent.get(event.cause, 0) + 1}
    job = replace(job, spent=spent)
    closing = (Effect.RELEASE, Effect.CLOSE_TRACKING)
    if event.cause is Cause.DONE:
        return _finish(job, State.SUCCEEDED, event.cause, event.detail, closing)
    if job.stop_for is Cause.CANCELLED or event.cause is Cause.CANCELLED:
        return _finish(job, State.CANCELLED, Cause.CANCELLED, job.detail or event.detail, closing)
    if job.stop_for is Cause.TIME_LIMIT or event.cause is Cause.TIME_LIMIT:
        return _finish(job, State.FAILED, Cause.TIME_LIMIT, job.detail or event.detail, closing)
    if event.cause in (Cause.CONFIG, Cause.NO_REQUEUE):
        return _finish(job, State.FAILED, event.cause, event.detail, closing)
    return _again(job, event, now, closing)


def _again(job: Job, event: AttemptEnded, now: float, closing: tuple[Effect, ...]) -> Result:
    """Requeue, back off, or give up on the budget of the cause."""
    budget, spent = job.retry.budget(event.cause), job.spent[event.cause]
    if budget is not None and spent > budget:
        detail = f"{event.detail or event.cause.value}; the budget of {budget} for {event.cause.value} is spent"
        return _finish(job, State.FAILED, event.cause, detail, closing)
    # A program that says of itself that it was preempted, and commits nothing, is not to spin.
    if event.cause is Cause.PREEMPTED and (event.progressed or job.stop_for is Cause.PREEMPTED):
        return replace(job, state=State.QUEUED, stop_for=None, detail=event.detail), (Effect.RELEASE,)
    blamed = event.cause in (Cause.CRASH, Cause.HANG)  # an outage says nothing about the program's progress
    stalled = 0 if event.progressed else job.stalled_in_row + blamed
    limit = job.retry.no_progress
    if limit is not None and stalled > limit:
        detail = f"{event.detail or event.cause.value}; {stalled} attempts in a row committed no newer checkpoint"
        return _finish(replace(job, stalled_in_row=stalled), State.FAILED, event.cause, detail, closing)
    failures = 1 if event.progressed else job.failures_in_row + 1
    job = replace(job, stalled_in_row=stalled, failures_in_row=failures, stop_for=None, detail=event.detail)
    return replace(job, state=State.BACKOFF, not_before=now + job.retry.backoff(failures)), (Effect.RELEASE,)


def _resume(job: Job, event: ResumeRequested, now: float) -> Result:
    """A fresh start of the budgets; the attempt number goes on growing."""
    fresh = replace(job, spent={}, failures_in_row=0, stalled_in_row=0, stop_for=None, cause=None, detail="")
    return replace(fresh, state=State.QUEUED), ()


def _queue(job: Job, event: BackoffElapsed, now: float) -> Result:
    return replace(job, state=State.QUEUED, not_before=None), ()


def _refuse_final(job: Job, event: StopRequested, now: float) -> Result:
    raise ConflictError(f"job {job.id} is {job.state.value} already", hint="see `rexctl ls` for jobs that still run")


def _refuse_resume(job: Job, event: ResumeRequested, now: float) -> Result:
    why = "it has succeeded" if job.state is State.SUCCEEDED else f"it is {job.state.value}"
    raise ConflictError(f"job {job.id} cannot be resumed: {why}", hint="failed and cancelled jobs can be")


_Rule = Callable[[Job, Any, float], Result]

TABLE: dict[tuple[State, type], _Rule] = {
    (State.QUEUED, GangGranted): _granted,
    (State.QUEUED, StopRequested): _stop_waiting,
    (State.BACKOFF, BackoffElapsed): _queue,
    (State.BACKOFF, StopRequested): _stop_waiting,
    (State.LAUNCHING, WorkersReported): _reported,
    (State.LAUNCHING, StopRequested): _stop_active,
    (State.LAUNCHING, AttemptEnded): _ended,
    (State.RUNNING, WorkersReported): _unchanged,
    (State.RUNNING, StopRequested): _stop_active,
    (State.RUNNING, AttemptEnded): _ended,
    (State.FAILED, ResumeRequested): _resume,
    (State.CANCELLED, ResumeRequested): _resume,
    **{(state, ResumeRequested): _refuse_resume for state in State if state not in (State.FAILED, State.CANCELLED)},
    **{(state, StopRequested): _refuse_final for state in State if state.final},
}


def transition(job: Job, event: Event, *, now: float) -> Result:
    """The job after `event`, and what is to be done.

    What another attempt than the job's newest says is discarded, and so is a second word of one that has ended:
    (job unchanged, no effects). IllegalTransition if the table does not name (state, event); ConflictError if a user
    asked for what the state does not allow.
    """
    if isinstance(event, (AttemptEnded, WorkersReported)) and (event.attempt != job.attempt or not job.state.active):
        return job, ()
    rule = TABLE.get((job.state, type(event)))
    if rule is None:
        raise IllegalTransition(f"job {job.id}: {type(event).__name__} in state {job.state.value}")
    return rule(job, event, now)
