"""`rexctl resume`."""

from __future__ import annotations

from orchestrator.cli.common import HomeOption, JobArgument, JsonOption, open_stack, open_store, print_json, say


def command(job: JobArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Take up a failed or cancelled job at its newest checkpoint, with fresh retry budgets."""
    from jobs.states import ResumeRequested

    store = open_store(home)
    row = store.request(store.get(job).id, ResumeRequested(), action="resume_requested")
    open_stack(home).up(say)
    step = row.checkpoint["step"] if row.checkpoint else 0
    if json:
        print_json({"job_id": row.id, "state": row.state.value, "from_step": step})
    else:
        print(f"{row.id}: {row.state.value}, goes on from step {step}")
