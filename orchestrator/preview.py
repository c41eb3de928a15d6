"""A job and attempt that exist nowhere, for `--dry-run`: what would be launched, without a store."""

from __future__ import annotations

from jobs.spec import JobSpec
from jobs.states import Job, State
from orchestrator.settings import Home
from orchestrator.store import AttemptRow, JobRow


def preview_rows(spec: JobSpec, home: Home) -> tuple[JobRow, AttemptRow]:
    """The rows of a first attempt of a job called NAME-PREVIEW."""
    job_id = f"{spec.name}-preview"
    row = JobRow(
        job=Job(id=job_id, state=State.LAUNCHING, attempt=1, retry=spec.retry),
        spec=spec,
        version=0,
        submitted_at=0.0,
        finished_at=None,
        waiting="",
        checkpoint=None,
        metrics={},
        init_from=None,
        store_uri=f"{home.objects_uri}/{job_id}",
        mlflow_run=None,
        unreachable_since=None,
    )
    attempt = AttemptRow(
        job_id=job_id,
        number=1,
        token="TOKEN",
        nodes=[],
        plan=None,
        granted_at=0.0,
        ready_at=None,
        first_step_at=None,
        stop_at=None,
        ended_at=None,
        cause=None,
        detail="",
        from_step=None,
        to_step=0,
        resumed=None,
        quarantined=[],
        seconds={},
        view={},
    )
    return row, attempt
