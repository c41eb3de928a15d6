"""`rexctl cancel`."""

from __future__ import annotations

from orchestrator.cli.common import (
    HomeOption,
    JobArgument,
    JsonOption,
    open_stack,
    open_store,
    print_json,
    warn_if_stopped,
)


def command(job: JobArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """End a job: its workers drain and commit a checkpoint, and it is not started again."""
    from jobs.budgets import Cause
    from jobs.states import StopRequested

    store = open_store(home)
    row = store.get(job)
    stop = StopRequested(cause=Cause.CANCELLED, detail="asked for by hand")
    row = store.request(row.id, stop, action="cancel_requested", detail={"by": "hand"})
    warn_if_stopped(open_stack(home), store, job_id=row.id)
    asked = row.job.stop_for.value if row.job.stop_for else None
    if json:
        print_json({"job_id": row.id, "state": row.state.value, "stopping_for": asked})
    else:
        print(f"{row.id}: {row.state.value}" + (f", draining ({asked})" if asked else ""))
