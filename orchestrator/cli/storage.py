"""`rexctl storage`: the object store under the checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import HomeOption, JsonOption, print_json

if TYPE_CHECKING:
    from cluster.storage.doctor import Diagnosis

app = typer.Typer(help="Look at the object store under the checkpoints.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Look at the object store under the checkpoints."""


@app.command("doctor")
def doctor(
    uri: Annotated[
        str | None, typer.Argument(help="file:// or s3:// URI (default: the state directory's).", metavar="[URI]")
    ] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="AWS profile to use for it.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Try out with a few small objects what a store really does, and pick the commit protocol for it (exit 3: none is
    safe). The answer is remembered for the next submits."""
    from orchestrator.settings import Home
    from orchestrator.storage import diagnose_and_remember
    from orchestrator.store import Store

    found = Home.find(home)
    store = Store(found.database_url)
    diagnosis = diagnose_and_remember(uri or found.objects_uri, store if store.exists else None, profile=profile)
    print_json(diagnosis.to_dict()) if json else _print_table(diagnosis)
    if diagnosis.protocol is None:
        raise typer.Exit(3)


def _print_table(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table

    words = {True: "holds", False: "does not", None: ""}
    table = Table(title=diagnosis.uri, title_justify="left")
    for heading in ("check", "", "seen", "what it means"):
        table.add_column(heading, overflow="fold")
    for check in diagnosis.checks:
        table.add_row(check.name, words[check.holds], check.seen, check.meaning)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(f"commit protocol: {diagnosis.protocol or 'none is safe'}: {diagnosis.reason}")
