"""The entry point: collects the verbs and turns errors into one sentence and an exit code."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from jobs.errors import RexError
from orchestrator.cli import (
    cancel,
    chaos,
    checkpoints,
    demo,
    down,
    events,
    logs,
    ls,
    nodes,
    preempt,
    resume,
    run,
    status,
    storage,
    submit,
    up,
    verify,
    why,
)

app = typer.Typer(
    name="rexctl",
    help="Runs MindSpore training jobs on a Ray cluster as a chain of attempts over verified checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (run, submit, ls, nodes, status, why, logs, events, cancel, preempt, resume, verify, up, down, demo, chaos):
    app.command(name=verb.__name__.rpartition(".")[2])(verb.command)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(storage.app, name="storage")

_debug = False


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rexctl {version('rexnet-orchestrator')}")
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    global _debug
    _debug = debug


def main() -> None:
    """Run rexctl; an error is one sentence on stderr and its exit code, with --debug the traceback too."""
    try:
        app()
    except RexError as error:
        if _debug:
            raise
        print(f"rexctl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if _debug:
            raise
        bug = f"a bug: {type(error).__name__}: {error} (with --debug it shows where)"
        print(f"rexctl: {_why_no_answer(error) or bug}", file=sys.stderr)
        sys.exit(3)


def _why_no_answer(error: Exception) -> str | None:
    """One sentence on a job store that does not answer; None if it is not that."""
    database = sys.modules.get("sqlalchemy.exc")  # whoever has not asked it has not loaded it
    if database is None or not isinstance(error, database.OperationalError):
        return None
    return (
        f"the job store does not answer: {error.orig}. Try again; if it stays locked, the control plane may be stopped "
        "(SIGSTOP) in the middle of a write: let it go on, or end it, and `rexctl up`"
    )
