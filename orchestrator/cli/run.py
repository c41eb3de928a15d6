"""`rexctl run`: submit a job, follow it, sum it up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import UserError
from jobs.states import State
from orchestrator.cli.common import HomeOption, JsonOption, open_stack, print_json, say
from orchestrator.cli.submit import DryRunOption, dry_run, submit_file


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
