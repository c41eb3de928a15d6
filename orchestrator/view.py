"""What people and programs are shown of a job: one value, made in one place, for status, summary and `--json`."""

from __future__ import annotations

import time
from typing import Any

from jobs.states import State
from orchestrator.control.straggler import straggler
from orchestrator.ledger import ledger
from orchestrator.store import AttemptRow, Store

LOOP_SILENT_S = 30.0  # a loop that finished no round for so long is taken for dead or stuck


def attempt_view(attempt: AttemptRow) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "cause": attempt.cause,
        "detail": attempt.detail,
        "end": attempt.view.get("end"),  # kind, first rank to fail, its host, when, hint: see docs/exits.md
        "from_step": attempt.from_step,
        "to_step": attempt.to_step,
        "resumed_from": (attempt.resumed or {}).get("manifest"),
        "quarantined": attempt.quarantined,
        "hosts": [node["host"] for node in attempt.nodes],
    }


def exits_view(attempt: AttemptRow) -> dict[str, Any]:
    """An attempt with the end of each of its ranks (of the first to end, where there are many)."""
    exits = attempt.view.get("exits", [])
    num_exits = attempt.view.get("num_exits", 0)
    return {"job_id": attempt.job_id, **attempt_view(attempt), "exits": exits, "num_exits": num_exits}


def _idle_seconds(store: Store, job_id: str, end: float) -> float:
    """Seconds in backoff, or final before a resume, from the event log."""
    total, since = 0.0, None
    for entry in store.events(job_id):
        state = State(entry["state"])
        idle = state is State.BACKOFF or state.final
        if since is not None and not idle:
            total += entry["at"] - since
            since = None
        elif since is None and idle:
            since = entry["at"]
    return total + (max(0.0, end - since) if since is not None else 0.0)


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
        "saving": first.get("saving"),
        "store": row.store_uri,
        "commit_protocol": row.commit_protocol,
        "mlflow": {"tracking_uri": mlflow_uri, "run_id": row.mlflow_run},
        "seconds": ledger(row, attempts, now=now, idle_s=_idle_seconds(store, row.id, end)),
        "straggler": straggler(ranks, [node["host"] for node in newest.nodes], row.spec.gang.workers_per_node)
        if newest
        else None,
        "nodes": newest.view.get("nodes", []) if newest else [],
        "ranks": [
            {
                "rank": beat["rank"],
                "pid": beat.get("pid"),
                "phase": beat["phase"],
                "step": beat["step"],
                "work_s": beat.get("work_s"),
            }
            for beat in ranks
        ],
    }
