"""What people and programs are shown of a job: one value, made in one place, for status, summary and `--json`."""

from __future__ import annotations

import time
from typing import Any

from jobs.states import State
from orchestrator.ledger import ledger
from orchestrator.store import AttemptRow, Store

LOOP_SILENT_S = 30.0  # a loop that finished no round for so long is taken for dead or stuck


def attempt_view(attempt: AttemptRow) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "cause": attempt.cause,
        "detail": attempt.detail,
        "from_step": attempt.from_step if attempt.from_step is not None else 0,
        "to_step": attempt.to_step,
        "resumed_from": (attempt.resumed or {}).get("manifest"),
        "quarantined": attempt.quarantined,
        "hosts": [node["host"] for node in attempt.nodes],
    }


def _backoff_seconds(store: Store, job_id: str, end: float) -> float:
    """Seconds in state backoff, from the event log."""
    total, since = 0.0, None
    for entry in store.events(job_id):
        if since is not None:
            total += entry["at"] - since
        since = entry["at"] if entry["state"] == State.BACKOFF.value else None
    return total + (end - since if since is not None else 0.0)


def job_view(store: Store, job_id: str, *, mlflow_uri: str) -> dict[str, Any]:
    """All of one job, as documented for `rexctl run --json` and `rexctl status --json`."""
    row = store.get(job_id)
    attempts = store.attempts(row.id)
    now = time.time()
    end = row.finished_at or now
    newest = attempts[-1] if attempts else None
    ranks = newest.view.get("ranks", []) if newest and row.state.active else []
    first: dict[str, Any] = next((beat for beat in ranks if beat["rank"] == 0), {})
    return {
        "job_id": row.id,
        "name": row.spec.name,
        "state": row.state.value,
        "cause": row.job.cause.value if row.job.cause else None,
        "detail": row.job.detail,
        "waiting": row.waiting if row.state is State.QUEUED else "",
        "stopping_for": row.job.stop_for.value if row.job.stop_for else None,
        "unreachable_since": row.unreachable_since,
        "priority": row.spec.priority,
        "attempts": [attempt_view(attempt) for attempt in attempts],
        "progress": {
            "phase": first.get("phase"),
            "step": max((beat.get("step", 0) for beat in ranks), default=newest.to_step if newest else 0),
            "total_steps": first.get("total_steps") or (newest.view.get("ranks") or [{}])[0].get("total_steps")
            if newest
            else None,
            "epoch": first.get("epoch"),
            "images_per_s": first.get("images_per_s"),
            "loss": first.get("loss"),
        },
        "metrics": {name: row.metrics.get(name) for name in ("top1", "top5", "loss")},
        "checkpoint": row.checkpoint,
        "store": row.store_uri,
        "mlflow": {"tracking_uri": mlflow_uri, "run_id": row.mlflow_run},
        "seconds": ledger(row, attempts, now=now, backoff_s=_backoff_seconds(store, row.id, end)),
        "nodes": newest.view.get("nodes", []) if newest else [],
        "ranks": [
            {"rank": beat["rank"], "pid": beat.get("pid"), "phase": beat["phase"], "step": beat["step"]}
            for beat in ranks
        ],
    }
