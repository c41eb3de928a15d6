"""What the verbs of `rexctl checkpoints` print with --json; docs/checkpoints.md describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.listing import Found, shared_with

if TYPE_CHECKING:
    from cluster.storage.chain.gc import Collected
    from jobs.retention import Retention
    from orchestrator.checkpoints.verdicts import Verdict


def row(one: Found) -> dict[str, Any]:
    """One of `ls`."""
    manifest = one.manifest
    return {
        "manifest": one.name, "attempt": one.attempt, "step": one.step, "state": one.state, "live": one.live,
        "resumes": one.resumes, "reason": one.reason, "size_bytes": one.size_bytes,
        "epoch": manifest.epoch if manifest else None,
        "samples": manifest.samples if manifest else None,
        "parent": manifest.parent if manifest else None,
        "metrics": manifest.metrics if manifest else {},
        "created_at": manifest.created_at if manifest else None,
        "sha256": manifest.sha256() if manifest else None,
    }  # fmt: skip


def whole(store: str, one: Found) -> dict[str, Any]:
    """`show`."""
    manifest = one.readable()
    files = [{**entry.model_dump(mode="json"), "shared_with": shared_with(entry, manifest)} for entry in manifest.files]
    return {**row(one), **manifest.model_dump(mode="json"), "files": files, "manifest": one.name, "store": store}


def verdict(given: Verdict) -> dict[str, Any]:
    """One of `verify`."""
    one = given.checkpoint
    return {
        "manifest": one.name, "step": one.step, "state": one.state, "problems": list(given.problems),
        "verdict": "damaged" if given.damaged else "whole",
        "num_files": len(one.files), "size_bytes": one.size_bytes,
    }  # fmt: skip


def collection(done: Collected, retention: Retention, *, dry_run: bool) -> dict[str, Any]:
    """`gc`."""
    return {
        "dry_run": dry_run, "retention": retention.model_dump(mode="json"), "kept": done.kept,
        "retired": list(done.retired),
        "objects": [{"key": info.key, "size_bytes": info.size_bytes} for info in done.objects],
        "leftovers": [left.key for left in done.leftovers],
        "size_bytes": done.size_bytes, "num_unsettled": done.unsettled, "note": done.note,
    }  # fmt: skip
