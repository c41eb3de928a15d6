"""`rexctl status`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.common import (
    HomeOption,
    JobArgument,
    JsonOption,
    open_stack,
    open_store,
    print_json,
    warn_if_stopped,
)


def command(
    job: JobArgument,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Show how each rank of that attempt ended.", metavar="N", min=1)
    ] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Show one job: state, attempts, each rank with its process id, checkpoint, where the time went."""
    from orchestrator.cli.summary import exits, summary
    from orchestrator.view import exits_view, job_view

    store, stack = open_store(home), open_stack(home)
    if attempt is not None:
        view = exits_view(store.attempt(store.get(job).id, attempt))
        return print_json(view) if json else print(exits(view))
    view = job_view(store, store.get(job).id, mlflow_uri=stack.mlflow_uri)
    if json:
        return print_json(view)
    from orchestrator.cli.follow import progress_line

    print(progress_line(view), end="")
    print(summary(view))
    for node in view["nodes"]:
        cpus = ",".join(map(str, node["cpus"] or []))
        print(
            f"node {node['node_rank']:<8} {node['host'] or '?'}, {node['phase'] or node['answer']}, CPUs {cpus or '?'}"
        )
    for rank in view["ranks"]:
        pid = f"pid {rank['pid']}" if rank["pid"] else "ended"
        work = f", {rank['work_s'] * 1000:.0f} ms of work a step" if rank["work_s"] else ""
        print(f"rank {rank['rank']:<8} {pid}, {rank['phase']}, step {rank['step']}{work}")
    if slow := view["straggler"]:
        print(
            f"slow         rank {slow['rank']} on {slow['host']} works {slow['work_s'] * 1000:.0f} ms for a step, "
            f"the others {slow['others_s'] * 1000:.0f} ms: they wait for it"
        )
    return warn_if_stopped(stack, store, job_id=view["job_id"])
