"""The folders that attempts leave on a node, and which of them go when there are too many or they take too much room.

One is ended once it holds the record of its end, or once the same job has a newer one here: attempts of a job never
overlap. Nothing else is ever removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.node.ending import ENDED_FILE

SHIPPED_FILE = "shipped.json"  # how the shipping of its logs went
_FOLDER = re.compile(r"^attempt-(\d+)/node-(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFolder:
    """One node of one attempt; `ended` and `job_goes_on` as far as this node can tell."""

    path: Path
    job: str
    attempt: int
    node_rank: int
    ended: bool
    ended_at: float
    job_goes_on: bool  # its newest attempt here has not ended

    @property
    def is_shipped(self) -> bool:
        result = shipping_result(self.path)
        return result is not None and result["error"] is None


def shipping_result(directory: Path) -> dict[str, Any] | None:
    """How shipping that folder went: {"at", "tries", "files", "bytes", "error"}; None while it is not over."""
    try:
        result: dict[str, Any] = json.loads((directory / SHIPPED_FILE).read_text())
    except (OSError, ValueError):
        return None
    return result


def folders_of(work_root: Path, job: str) -> list[AttemptFolder]:
    """The job's folders on this node, oldest attempt first."""
    found = []
    for path in (work_root / job).glob("attempt-*/node-*"):
        match = _FOLDER.match(str(path.relative_to(work_root / job)))
        if match is not None and path.is_dir():
            found.append((int(match[1]), int(match[2]), path))
    found.sort()
    newest = found[-1][0] if found else 0
    goes_on = any(number == newest and not (path / ENDED_FILE).exists() for number, _, path in found)
    return [
        AttemptFolder(
            path=path, job=job, attempt=number, node_rank=node_rank, job_goes_on=goes_on,
            ended=number < newest or (path / ENDED_FILE).exists(), ended_at=_ended_at(path),
        )
        for number, node_rank, path in found
    ]  # fmt: skip


def _ended_at(path: Path) -> float:
    try:
        return (path / ENDED_FILE).stat().st_mtime
    except FileNotFoundError:
        return path.stat().st_mtime  # its host went down: when it was last seen to change


def prune(work_root: Path, *, keep_attempts: int, bound_bytes: int) -> Iterator[str]:
    """Remove ended attempts beyond each job's newest `keep_attempts`, then until all take at most `bound_bytes`.

    Of those that go for the room they take, ended jobs' come first, what was shipped before what was not, then the
    oldest. Yields a sentence about each.
    """
    jobs = [path.name for path in work_root.iterdir() if path.is_dir()]
    folders = [folder for job in jobs for folder in folders_of(work_root, job)]
    left = []
    for folder in folders:
        newer = {other.attempt for other in folders if other.job == folder.job and other.attempt > folder.attempt}
        if folder.ended and len(newer) >= keep_attempts:
            yield _remove(folder, f"{len(newer)} newer ones are kept")
        else:
            left.append(folder)
    sizes = {folder.path: _size_bytes(folder.path) for folder in left}
    total = sum(sizes.values())
    for folder in sorted(left, key=lambda one: (one.job_goes_on, not one.is_shipped, one.ended_at)):
        if total <= bound_bytes:
            return
        if folder.ended:
            yield _remove(folder, f"attempts take {total} bytes here, the bound is {bound_bytes}")
            total -= sizes[folder.path]
    if total > bound_bytes:
        yield f"attempts that have not ended take {total} bytes here, the bound is {bound_bytes}"


def _remove(folder: AttemptFolder, why: str) -> str:
    lost = "" if folder.is_shipped else ", whose logs were never shipped"
    shutil.rmtree(folder.path, ignore_errors=True)
    for parent in (folder.path.parent, folder.path.parent.parent):
        try:
            parent.rmdir()
        except OSError:
            break  # another node's or attempt's is in it
    return f"removed {folder.job} attempt {folder.attempt} node {folder.node_rank}{lost}: {why}"


def _size_bytes(path: Path) -> int:
    """What the folder takes on disk; holes take nothing."""
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(Path(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
