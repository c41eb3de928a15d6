"""`rexctl ls`."""

from __future__ import annotations

from orchestrator.cli.common import HomeOption, JsonOption, open_stack, open_store, print_json, warn_if_stopped


def command(home: HomeOption = None, json: JsonOption = False) -> None:
    """List the jobs, newest first."""
    from orchestrator.view import job_view

    store, stack = open_store(home), open_stack(home)
    views = [job_view(store, row.id, mlflow_uri=stack.mlflow_uri) for row in store.jobs()]
    if json:
        keys = ("job_id", "name", "state", "cause", "priority", "waiting", "progress", "checkpoint")
        return print_json([{key: view[key] for key in keys} for view in views])
    from orchestrator.cli.follow import progress_line

    print(f"{'JOB':<24} {'PRIORITY':>8}  STATE")
    for view in views:
        print(f"{view['job_id']:<24} {view['priority']:>8}  {progress_line(view)}")
    return warn_if_stopped(stack, store)
