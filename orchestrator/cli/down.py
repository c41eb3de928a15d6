"""`rexctl down`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.common import HomeOption, JsonOption, open_stack, print_json, say


def command(
    home: HomeOption = None,
    json: JsonOption = False,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for running jobs to drain.")] = False,
) -> None:
    """Stop all that was brought up. Running jobs drain to a checkpoint first and go on with the next `rexctl up`."""
    from orchestrator.shutdown import shut_down

    waiting = shut_down(open_stack(home), say, drain=not now)
    if json:
        print_json({"stopped": True, "go_on_with_up": waiting})
    else:
        print("stopped" + (f"; {', '.join(waiting)} will go on with the next `rexctl up`" if waiting else ""))
