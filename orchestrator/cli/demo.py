"""`rexctl demo`: the main job, preempted half-way by a more urgent one, resumed, finished."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jobs.spec import JobSpec
from jobs.states import State
from orchestrator.cli.common import HomeOption, JsonOption, open_stack, print_json, say


def command(home: HomeOption = None, json: JsonOption = False) -> None:
    """Train ReXNet on the digits, have it preempted half-way by a more urgent job, and see it resume and finish."""
    import jobs
    from orchestrator.cli.follow import follow
    from orchestrator.cli.submit import submit_file, submit_spec
    from orchestrator.cli.summary import summary
    from orchestrator.submit import read_spec
    from orchestrator.view import job_view

    recipes = Path(jobs.__file__).parent / "recipes"
    stack = open_stack(home)
    store, main = submit_file(stack, recipes / "quickstart.yaml")
    say(f"submitted {main.id}")
    urgent: list[str] = []

    def interfere(view: dict[str, Any]) -> None:
        """Half-way, judged by the job's heartbeat, somebody more important comes."""
        progress = view["progress"]
        if not urgent and progress["total_steps"] and progress["step"] >= progress["total_steps"] / 2:
            _, row = submit_spec(stack, whole_node(read_spec(recipes / "urgent.yaml", stack.home), stack.home.slots))
            urgent.append(row.id)
            say(f"submitted {row.id}: higher priority, needs the same slots")

    states = [follow(store, main.id, stack, out=sys.stderr if json else sys.stdout, each=interfere)]
    for job_id in urgent:  # long over, unless somebody interfered
        over = store.get(job_id).state
        states.append(over if over.final else follow(store, job_id, stack, out=sys.stderr))
    views = [job_view(store, job_id, mlflow_uri=stack.mlflow_uri) for job_id in [main.id, *urgent]]
    if json:
        print_json({"main": views[0], "urgent": views[1] if urgent else None})
    else:
        for view in reversed(views):
            print(summary(view))
        say("\nMLflow goes on serving its pages; `rexctl down` stops everything that was brought up")
    preempted = any(attempt["cause"] == "preempted" for attempt in views[0]["attempts"])
    if not preempted:
        say("the job was not preempted: it ended before the urgent one needed its nodes")
    sys.exit(0 if preempted and all(state is State.SUCCEEDED for state in states) else 1)


def whole_node(spec: JobSpec, slots: int) -> JobSpec:
    """The same job with so many CPUs for each worker that nobody fits beside it, however large the machine is."""
    gang = spec.gang.model_copy(update={"cpus_per_worker": max(1, slots // spec.gang.workers_per_node)})
    return spec.model_copy(update={"gang": gang})
