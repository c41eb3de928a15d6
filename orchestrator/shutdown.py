"""Taking the local stack down: drain what runs, stop the services, make sure that nothing is left."""

from __future__ import annotations

import time

from cluster.node.processes import end_by_environment
from jobs.budgets import Cause
from jobs.contract import ENV_TOKEN
from jobs.errors import ConflictError, StackError
from jobs.states import StopRequested
from orchestrator.stack import Progress, Stack
from orchestrator.store import Store
from orchestrator.store.flags import PAUSED

_MARGIN_S = 30.0  # beyond a job's own grace: sweep, certificate, the loop's next round


def shut_down(stack: Stack, say: Progress, *, drain: bool) -> list[str]:
    """Stop everything of this state directory; returns the jobs that will go on with the next `up`."""
    store = Store(stack.home.database_url)
    if not store.exists:
        stack.down(say)
        return []
    store.set_flag(PAUSED, True)
    if drain and stack.service("control") is not None:
        _drain(store, say)
    stack.down(say)
    for row in store.jobs(active=True):
        left = end_by_environment(ENV_TOKEN, store.attempt(row.id, row.job.attempt).token)
        if left:
            raise StackError(f"processes {left} of {row.id} do not end", hint="look at them with ps")
    return [row.id for row in store.jobs() if not row.state.final]


def _drain(store: Store, say: Progress) -> None:
    """Preempt what runs and wait for it, each job within its own grace; also what was granted a moment ago."""
    began, grace_s = time.monotonic(), 0.0
    while (active := store.jobs(active=True)) or store.pending_effects():
        for row in active:
            grace_s = max(grace_s, row.spec.limits.drain_grace_s)
            if row.job.stop_for is None:
                say(f"draining {row.id}")
                _preempt(store, row.id)
        if time.monotonic() - began > grace_s + _MARGIN_S:
            what = f"{', '.join(row.id for row in active)} did not drain in time; the previous checkpoint counts"
            say(what if active else "MLflow did not take everything in time; the next `rexctl up` goes on with it")
            return
        time.sleep(0.2)


def _preempt(store: Store, job_id: str) -> None:
    stop = StopRequested(cause=Cause.PREEMPTED, detail="rexctl down")
    try:
        store.request(job_id, stop, action="preempt_requested", detail={"reason": "rexctl down"})
    except ConflictError:
        return  # it has just ended by itself
