"""`rexctl logs`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.common import HomeOption, JobArgument, open_store


def command(  # noqa: PLR0917 - typer's way to say options
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="One rank only; -1 is msrun's scheduler.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", help="Default: the newest.")] = None,
    home: HomeOption = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line: attempt, rank, line.")] = False,
) -> None:
    """Print the workers' output, each line with its rank."""
    from dataclasses import asdict
    from json import dumps

    from orchestrator.logs import stream

    store = open_store(home)
    row = store.get(job)
    told = None
    for line in stream(store, row.id, attempt=attempt, rank=rank, follow=follow):
        if json:
            print(dumps(asdict(line)), flush=follow)
            continue
        if follow and line.attempt != told:
            told = line.attempt
            print(f"--- attempt {told}")
        print(f"[{'scheduler' if line.rank < 0 else line.rank}] {line.line}", flush=follow)
