"""`rexctl cancel`."""

from __future__ import annotations

from orchestrator.cli.common import HomeOption, JobArgument, JsonOption, ask_to_stop


def command(job: JobArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """End a job: its workers drain and commit a checkpoint, and it is not started again."""
    from jobs.budgets import Cause

    ask_to_stop(job, home, cause=Cause.CANCELLED, as_json=json)
