"""What the verbs share: options, opening the store, printing."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import NotFoundError
from orchestrator.settings import Home

if TYPE_CHECKING:
    from jobs.budgets import Cause
    from orchestrator.stack import Stack
    from orchestrator.store import Store

HomeOption = Annotated[
    str | None, typer.Option("--home", envvar="REX_HOME", help="State directory (default: ~/.rexctl).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
JobArgument = Annotated[str, typer.Argument(help="Job id, or an unambiguous beginning of one.", metavar="JOB")]


def say(line: str) -> None:
    """A line of progress or advice; results go to stdout, this does not."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2), flush=True)


def open_stack(home: str | None) -> Stack:
    from orchestrator.stack import Stack

    return Stack(Home.find(home))


def open_store(home: str | None) -> Store:
    """The store of an existing state directory; says so if nothing was ever submitted there."""
    from orchestrator.store import Store

    found = Home.find(home)
    if found.settings.database is None and not (found.path / "store.db").exists():
        raise NotFoundError(f"there is no job store in {found.path}", hint="`rexctl run JOBFILE` makes one")
    store = Store(found.database_url)
    store.migrate()
    return store


def ask_to_stop(job: str, home: str | None, *, cause: Cause, as_json: bool) -> None:
    """Write down that the job's attempt is to end for `cause`, and print where the job stands."""
    from jobs.states import StopRequested

    store = open_store(home)
    verb = "cancel" if cause.value == "cancelled" else "preempt"
    stop = StopRequested(cause=cause, detail="asked for by hand")
    row = store.request(store.get(job).id, stop, action=f"{verb}_requested", detail={"by": "hand"})
    warn_if_stopped(open_stack(home), store, job_id=row.id)
    asked = row.job.stop_for.value if row.job.stop_for else None
    if as_json:
        print_json({"job_id": row.id, "state": row.state.value, "stopping_for": asked})
    else:
        print(f"{row.id}: {row.state.value}" + (f", draining ({asked})" if asked else ""))


def warn_if_stopped(stack: Stack, store: Store, *, job_id: str | None = None) -> None:
    """Say so when nobody will act on what was written down or is waited for."""
    if stack.service("control") is None:
        wanted = any(not row.state.final for row in store.jobs() if job_id in (None, row.id))
        if wanted:
            say("note: the control plane is not running; `rexctl up` starts it, running jobs are not affected")
