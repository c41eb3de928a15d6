"""`rexctl run`: submit a job, follow it, sum it up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import UserError
from jobs.states import State
from orchestrator.cli.common import HomeOption, JsonOption, open_stack, print_json, say
from orchestrator.cli.submit import DryRunOption, dry_run

if TYPE_CHECKING:
    from jobs.spec import JobSpec
    from orchestrator.stack import Stack
    from orchestrator.store import JobRow, Store


def submit_file(stack: Stack, jobfile: Path) -> tuple[Store, JobRow]:
    """Check the job file, bring up what is missing, queue the job."""
    from orchestrator.submit import read_spec

    return submit_spec(stack, read_spec(jobfile, stack.home))


def submit_spec(stack: Stack, spec: JobSpec) -> tuple[Store, JobRow]:
    """Bring up what is missing, queue the job."""
    from orchestrator.store import Store
    from orchestrator.submit import resolve_init_from, submit

    if spec.init_from is not None:
        before = Store(stack.home.database_url)
        resolve_init_from(spec, before if before.exists else None)
    store = stack.up(say)
    return store, submit(spec, store, stack.home)


def command(
    jobfile: Annotated[
        Path | None, typer.Argument(help="Job file (YAML).", metavar="[JOBFILE]", show_default=False)
    ] = None,
    attach: Annotated[
        str | None, typer.Option("--attach", help="Follow a job that was submitted before.", metavar="JOB")
    ] = None,
    home: HomeOption = None,
    json: JsonOption = False,
    dry: DryRunOption = False,
) -> None:
    """Submit a job and follow it to its end. Closing the terminal stops nothing; Ctrl-C cancels the job (with a
    checkpoint, so that `rexctl resume` can go on)."""
    if (jobfile is None) == (attach is None):
        raise UserError("run needs one of: a job file, --attach JOB", hint="see `rexctl run --help`")
    if dry and jobfile is not None:
        return dry_run(jobfile, home)
    stack = open_stack(home)
    if jobfile is not None:
        store, row = submit_file(stack, jobfile)
        say(f"submitted {row.id}")
    else:
        from orchestrator.cli.common import open_store

        row = open_store(home).get(str(attach))
        store = stack.up(say) if not row.state.final else open_store(home)
    from orchestrator.cli.follow import follow
    from orchestrator.cli.summary import summary
    from orchestrator.view import job_view

    state = follow(store, row.id, stack, out=sys.stderr if json else sys.stdout)
    view = job_view(store, row.id, mlflow_uri=stack.mlflow_uri)
    print_json(view) if json else print(summary(view))
    sys.exit(0 if state is State.SUCCEEDED else 1)
