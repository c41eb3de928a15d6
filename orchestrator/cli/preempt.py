"""`rexctl preempt`."""

from __future__ import annotations

from orchestrator.cli.common import HomeOption, JobArgument, JsonOption, ask_to_stop


def command(job: JobArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """Take the nodes from a running job: it drains, commits a checkpoint and is queued again."""
    from jobs.budgets import Cause

    ask_to_stop(job, home, cause=Cause.PREEMPTED, as_json=json)
