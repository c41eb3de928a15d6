"""`rexctl logs`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.common import HomeOption, JobArgument, open_store


def command(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="One rank only; -1 is msrun's scheduler.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", help="Default: the newest.")] = None,
    home: HomeOption = None,
) -> None:
    """Print the workers' output, each line with its rank."""
    from orchestrator.logs import stream

    store = open_store(home)
    row = store.get(job)
    for line in stream(store, row.id, attempt=attempt, rank=rank, follow=follow):
        print(line, flush=follow)
