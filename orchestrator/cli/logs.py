"""`rexctl logs`."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import HomeOption, JobArgument, open_stack, open_store, say

if TYPE_CHECKING:
    from cluster.logs.remote import RemoteNodes
    from orchestrator.logs.reading import Line

_COLOURS = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91)  # of ranks, in turns


def command(  # noqa: PLR0917 - typer's way to say options
    job: JobArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, through later attempts, until it ends.")
    ] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="One rank only.", metavar="R")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", help="Default: the newest.", metavar="N", min=1)] = None,
    node: Annotated[int | None, typer.Option("--node", help="The ranks of one node only.", metavar="N")] = None,
    scheduler: Annotated[bool, typer.Option("--scheduler", help="The log of msrun's scheduler instead.")] = False,
    supervisor: Annotated[
        bool, typer.Option("--supervisor", help="What prepares, starts and ends the ranks on each node instead.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", help="Begin with the last K lines of each log.", metavar="K", min=0)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say where each log is read from.")] = False,
    home: HomeOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: attempt, rank, node, host, file, source, line, ...")
    ] = False,
) -> None:
    """Print the ranks' output, from whichever host, each line with its rank (exit 3: not all of it could be read)."""
    from dataclasses import asdict
    from json import dumps

    from orchestrator.logs.lines import Wanted
    from orchestrator.logs.reading import View, stream

    wanted = Wanted(attempt=attempt, rank=rank, node=node, scheduler=scheduler, supervisor=supervisor, tail=tail)
    store, stack = open_store(home), open_stack(home)

    @cache
    def remote() -> RemoteNodes:
        from cluster.logs.remote import RemoteNodes

        return RemoteNodes(stack.ray_address)

    explain = say if verbose else lambda line: None
    elsewhere = None if stack.home.embedded_ray else remote
    view = View(wanted=wanted, follow=follow, say=say, explain=explain, remote=elsewhere)
    told, colour = None, sys.stdout.isatty() and "NO_COLOR" not in os.environ
    try:
        for line in stream(store, store.get(job).id, view):
            if json:
                print(dumps(asdict(line)), flush=follow)
                continue
            if follow and line.attempt != told:
                told = line.attempt
                print(f"--- attempt {told}")
            print(f"{_label(line, colour)} {_text(line, colour)}", flush=follow)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read us has seen enough, like head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if view.num_lost:
        raise typer.Exit(3)


def _label(line: Line, colour: bool) -> str:
    if line.rank is None:
        name, hue = f"[node {line.node} {line.file.removesuffix('.log')}]", line.node
    else:
        name, hue = f"[{line.rank if line.rank >= 0 else 'scheduler'}]", line.rank
    return f"\x1b[{_COLOURS[hue % len(_COLOURS)]}m{name}\x1b[0m" if colour else name


def _text(line: Line, colour: bool) -> str:
    if line.dropped_bytes:
        gone = f"... {line.dropped_bytes:,} bytes are gone: the log had reached its bound (log_limit_mib) ..."
        return f"\x1b[2m{gone}\x1b[0m" if colour else gone
    return line.line.rsplit("\r", 1)[-1]  # a progress bar, as a terminal would show it
