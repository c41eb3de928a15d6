"""`rexctl why`."""

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
    """Say what a job waits for, and what each preemption cost it."""
    from orchestrator.submit import why

    store = open_store(home)
    row = store.get(job)
    lines = why(store, row)
    if json:
        print_json({"job_id": row.id, "state": row.state.value, "why": lines})
    else:
        print("\n".join(lines))
    warn_if_stopped(open_stack(home), store, job_id=row.id)
