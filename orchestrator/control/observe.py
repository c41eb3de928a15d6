"""From what a gang's nodes say to what the store is to know: pure functions over reports and heartbeats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.gang import NodeView


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What all heartbeats of an attempt together say."""

    heard: bool = False  # has any rank said anything?
    step: int = 0
    from_step: int | None = None
    first_step_at: float | None = None
    resumed: dict[str, Any] | None = None
    quarantined: list[dict[str, str]] = field(default_factory=list)
    checkpoint: dict[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    mlflow_run: str | None = None


def heartbeats(views: Sequence[NodeView]) -> dict[int, dict[str, Any]]:
    """The newest heartbeat of each rank: its last one, out of the record of its end, where there is one."""
    newest: dict[int, dict[str, Any]] = {}
    for view in views:
        report = view.report or {}
        for beat in report.get("ranks", {}).values():
            newest[int(beat["rank"])] = beat
        for outcome in (report.get("ended") or {}).get("outcomes", []):
            if outcome["rank"] >= 0 and outcome.get("heartbeat"):
                newest[int(outcome["rank"])] = {**outcome["heartbeat"], "pid": None}
    return newest


def progress(beats: Iterable[dict[str, Any]]) -> Progress:
    """Sum up the ranks. Only rank 0 resumes, commits and tracks; its word counts for those."""
    beats = list(beats)
    first = next((beat for beat in beats if beat["rank"] == 0), {})
    resumed = first.get("resumed")
    return Progress(
        heard=bool(beats),
        step=first.get("step", 0) or max((beat.get("step", 0) for beat in beats), default=0),
        from_step=resumed["step"] if resumed else None,
        first_step_at=first.get("first_step_at"),
        resumed=resumed,
        quarantined=first.get("quarantined", []),
        checkpoint=first.get("checkpoint"),
        metrics=first.get("metrics", {}),
        seconds=first.get("seconds", {}),
        mlflow_run=first.get("mlflow_run"),
    )


def picture(views: Sequence[NodeView], beats: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What `rexctl status` shows of an attempt: its nodes, and each rank's newest heartbeat."""
    nodes = []
    for view in sorted(views, key=lambda v: v.node_rank):
        report = view.report or {}
        nodes.append(
            {
                "node_rank": view.node_rank,
                "answer": view.answer,
                "host": report.get("host"),
                "directory": report.get("directory"),
                "phase": report.get("phase"),
                "cpus": report.get("started", {}).get("cpus"),
                "agent": report.get("pid"),
                "supervisor": report.get("started", {}).get("pid"),
            }
        )
    return {"nodes": nodes, "ranks": [beats[rank] for rank in sorted(beats)]}
