"""Where the time went: every second of a job's age gets a name, and the names add up to the age. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.store import AttemptRow, JobRow

NAMES = (
    "queued",  # waiting for a gang
    "provisioning",  # Ray places the gang, agents prepare their nodes
    "starting",  # msrun, imports, cluster forming, resume
    "compiling",  # graph compile and the first step
    "training",  # steps whose result a checkpoint or the end kept
    "validating",
    "checkpoint_stall",  # steps blocked by a checkpoint's copy
    "lost_work",  # steps that a later attempt had to repeat, or nobody kept
    "draining",  # from the wish to stop, or the last step, to the teardown certificate
    "idle",  # in backoff, or between a job's end and its resume
)


def ledger(row: JobRow, attempts: Sequence[AttemptRow], *, now: float, idle_s: float = 0.0) -> dict[str, float]:
    """Seconds by name, from submission to the job's end (or to `now`).

    Args:
        idle_s: seconds in which nobody wanted a gang (in backoff, or failed and later resumed), from the event log;
            the rest of the time without one is queueing.
    """
    end = row.finished_at or now
    seconds = dict.fromkeys(NAMES, 0.0)
    for index, attempt in enumerate(attempts):
        successor = attempts[index + 1] if index + 1 < len(attempts) else None
        for name, value in split_attempt(row, attempt, successor, end=min(attempt.ended_at or end, end)).items():
            seconds[name] += value
    held = sum(max(0.0, min(attempt.ended_at or end, end) - attempt.granted_at) for attempt in attempts)
    without = max(0.0, end - row.submitted_at - held)
    seconds["idle"] = min(idle_s, without)
    seconds["queued"] = without - seconds["idle"]
    return {name: round(value, 3) for name, value in seconds.items()}


def split_attempt(row: JobRow, attempt: AttemptRow, successor: AttemptRow | None, *, end: float) -> dict[str, float]:
    """One attempt's seconds by name; they add up to its length."""
    own = attempt.seconds
    total = max(0.0, end - attempt.granted_at)
    provisioning = min(max(0.0, (attempt.ready_at or end) - attempt.granted_at), total)  # clocks of nodes differ
    rest = total - provisioning
    parts = {"provisioning": provisioning}

    def take(name: str, wanted: float) -> None:
        nonlocal rest
        parts[name] = max(0.0, min(wanted, rest))
        rest -= parts[name]

    if attempt.first_step_at is None:
        take("draining", end - attempt.stop_at if attempt.stop_at is not None else 0.0)
        parts["starting"] = rest
        return parts
    for name in ("compiling", "validating", "checkpoint_stall"):
        take(name, own.get(name, 0.0))
    before_first = max(0.0, attempt.first_step_at - (attempt.ready_at or attempt.granted_at))
    take("starting", before_first - parts["compiling"])
    take("training", own.get("training", 0.0))
    share = _lost_share(row, attempt, successor)
    parts["lost_work"] = parts["training"] * share
    parts["training"] -= parts["lost_work"]
    parts["draining"] = rest
    return parts


def _lost_share(row: JobRow, attempt: AttemptRow, successor: AttemptRow | None) -> float:
    """The share of an attempt's steps that came to nothing: those after the step that went on from it."""
    start = int((attempt.resumed or {}).get("step", 0))
    done = attempt.to_step - start
    if done <= 0 or attempt.ended_at is None:
        return 0.0
    if successor is not None:
        if successor.from_step is None:  # it has not resumed yet: nothing is known to be lost
            return 0.0
        kept = int(successor.from_step)
    else:
        kept = int((row.checkpoint or {}).get("step", 0))
    return min(1.0, max(0.0, (attempt.to_step - max(kept, start)) / done))
