"""`rexctl submit`: queue a job and return."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import HomeOption, JsonOption, open_stack, print_json, say

if TYPE_CHECKING:
    from jobs.spec import JobSpec
    from orchestrator.stack import Stack
    from orchestrator.store import JobRow, Store

SpecArgument = Annotated[Path, typer.Argument(help="Job file (YAML).", metavar="JOBFILE", show_default=False)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check and print the msrun command; start nothing.")]


def dry_run(jobfile: Path, home: str | None) -> None:
    """Print what would be started: the validated job and each node's msrun command."""
    from dataclasses import replace

    from cluster.node.msrun import build_msrun
    from orchestrator.control.effects import build_launch
    from orchestrator.preview import preview_rows
    from orchestrator.submit import read_spec

    stack = open_stack(home)
    spec = read_spec(jobfile, stack.home)
    row, attempt = preview_rows(spec, stack.home)
    uri = stack.home.settings.mlflow_uri or "http://127.0.0.1:PORT"
    plan = build_launch(row, attempt, stack.home, tracking_uri=uri, mlflow_run=None)
    print(f"# {spec.name}: {spec.gang.nodes} node(s) x {spec.gang.workers_per_node} worker(s) on {spec.gang.device}")
    if plan.prepare:
        print(f"python {' '.join(plan.prepare)}")
    for node_rank in range(spec.gang.nodes):
        command = build_msrun(
            plan,
            node_rank=node_rank,
            master_addr="127.0.0.1" if stack.home.embedded_ray else "NODE-0",
            master_port=0,
            cpus=tuple(range(spec.gang.cpus_per_node)),
            socket_name="SOCKET",
            node_env={},
        )
        shown = [arg.replace("--master_port=0", "--master_port=PORT") for arg in command.argv]
        print(replace(command, argv=tuple(shown)))


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
    return store, submit(spec, store, stack)


def command(
    jobfile: SpecArgument, home: HomeOption = None, json: JsonOption = False, dry: DryRunOption = False
) -> None:
    """Queue a job and return; the control plane does the rest."""
    if dry:
        return dry_run(jobfile, home)
    stack = open_stack(home)
    _, row = submit_file(stack, jobfile)
    if json:
        print_json({"job_id": row.id, "state": row.state.value})
    else:
        print(row.id)
        say(f"queued; follow it with `rexctl run --attach {row.id}`")
    return None
