"""The summary at a job's end, as text."""

from __future__ import annotations

import time
from typing import Any


def saving_line(saving: dict[str, Any]) -> str:
    """`auto, every 94 s; one holds training up by 12 ms and takes 0.31 s to commit; ...`: when, at what cost."""
    interval = f", every {saving['interval_s']:.0f} s" if saving.get("interval_s") else ""
    parts = [f"{saving['rule']}{interval}"]
    if saving.get("cost_s") is not None:
        held_ms, commit_s = saving["cost_s"] * 1000, saving["commit_s"]
        parts.append(f"one holds training up by {held_ms:.0f} ms and takes {commit_s:.2f} s to commit")
    hours = saving["mean_time_between_interruptions_s"] / 3600
    parts.append(f"an interruption every {hours:.1f} h ({saving['num_interruptions']} so far)")
    parts.append(", ".join(f"{saving[name]} {name}" for name in ("committed", "coalesced", "failed")))
    return "; ".join(parts)


def cause_and_kind(cause: str, kind: str | None) -> str:
    """`crash, out of memory`: the budget that an end cost, and what it was where that is another word."""
    alike = {"config": "configuration", "node_lost": "host_lost", "crash": "program"}
    return cause if kind is None or kind in (cause, alike.get(cause)) else f"{cause}, {kind.replace('_', ' ')}"


def _attempt(attempt: dict[str, Any]) -> list[str]:
    end = attempt["end"] or {}
    why = cause_and_kind(attempt["cause"], end.get("kind")) if attempt["cause"] else "running"
    detail = f": {attempt['detail']}" if attempt["detail"] else ""
    steps = f"steps {attempt['from_step']} to {attempt['to_step']}" if attempt["from_step"] is not None else "no step"
    lines = [f"attempt {attempt['number']:<4} {steps}, {why}{detail}"]
    if end.get("hint"):
        lines.append(f"             hint: {end['hint']}")
    lines += [f"             quarantined {bad['manifest']}: {bad['reason']}" for bad in attempt["quarantined"]]
    if attempt["quarantined"]:
        lines.append(f"             went on from {attempt['resumed_from'] or 'zero'}")
    return lines


def exits(view: dict[str, Any]) -> str:
    """One attempt, and how each of its ranks ended."""
    lines = _attempt(view)
    for end in view["exits"]:
        at = time.strftime("%H:%M:%S", time.localtime(end["at"])) if end["at"] is not None else ""
        lines.append(f"{at:>8}     {end['says']}")
    if not view["exits"]:
        lines.append(f"             {'nothing is known of its ranks' if view['cause'] else 'it has not ended yet'}")
    if view["num_exits"] > len(view["exits"]):
        lines.append(f"             and {view['num_exits'] - len(view['exits'])} more")
    where = f"rexctl logs {view['job_id']} --attempt {view['number']} --rank N --tail 20"
    lines.append(f"             their last lines: `{where}`")
    return "\n".join(lines)


def summary(view: dict[str, Any]) -> str:
    """State, attempts and why each ended, metrics, newest checkpoint, MLflow link, where the time went."""
    cause = f" ({view['cause']})" if view["cause"] and view["cause"] != "done" else ""
    lines = ["", f"job          {view['job_id']}", f"state        {view['state']}{cause}"]
    if view["detail"]:
        lines.append(f"             {view['detail']}")
    for attempt in view["attempts"]:
        lines += _attempt(attempt)
    named = {"top1": "top-1", "top5": "top-5", "loss": "loss"}
    metrics = [f"{named[key]} {value:.4f}" for key, value in view["metrics"].items() if value is not None]
    if metrics:
        lines.append(f"accuracy     {', '.join(metrics)}")
    checkpoint = view["checkpoint"]
    if checkpoint:
        lines.append(f"checkpoint   {checkpoint['manifest']} (step {checkpoint['step']})")
        lines.append(f"             sha256 {checkpoint['sha256']}")
        lines.append(f"             in {view['store']}")
    if view["saving"]:
        lines.append(f"saves        {saving_line(view['saving'])}")
    if view["mlflow"]["run_id"]:
        lines.append(f"MLflow       {view['mlflow']['tracking_uri']}/#/runs/{view['mlflow']['run_id']}")
    spent = ", ".join(
        f"{name.replace('_', ' ')} {value:.1f}" for name, value in view["seconds"].items() if value >= 0.05
    )
    lines.append(f"seconds      {sum(view['seconds'].values()):.1f}: {spent}")
    return "\n".join(lines)
