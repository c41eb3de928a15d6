"""Chains of checkpoints to test with: a state of their own, and a part of the run's record, at each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.storage.chain.checkpoints import CheckpointStore
from jobs.manifest import Manifest


def make_commit(  # noqa: PLR0917
    writer: CheckpointStore, folder: Path, attempt: int, step: int, parent: Manifest | None,
    also: Mapping[str, Path] = {}, **overrides: Any,
) -> Manifest:  # fmt: skip
    """Commit (attempt, step) of "state" and "metrics.jsonl", whose content names both; arguments can be overridden."""
    files = {}
    for name in ("state", "metrics.jsonl"):
        files[name] = folder / f"{attempt}-{step}-{name}"
        files[name].write_bytes(f"{name} of {attempt}, {step}. ".encode() * 50)
    arguments: dict[str, Any] = {
        "attempt": attempt, "step": step, "epoch": step // 100, "samples": step * 64,
        "parent": parent.name if parent else None, "files": {**files, **also}, "config_sha256": "c" * 64,
        "world_size": 2, "seed": 1, "code": {}, "versions": {}, "metrics": {}, "history": ("metrics.jsonl",),
    }  # fmt: skip
    return writer.commit(**{**arguments, **overrides})


def committed(
    writer: CheckpointStore, folder: Path, attempt: int, steps: list[int], parent: Manifest | None
) -> list[Manifest]:
    """One commit at each step, each on top of the one before."""
    made: list[Manifest] = []
    for step in steps:
        made.append(make_commit(writer, folder, attempt, step, made[-1] if made else parent))
    return made
