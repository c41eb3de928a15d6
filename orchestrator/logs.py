"""Reading workers' logs where this machine sees them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import NotFoundError
from orchestrator.store import AttemptRow, Store

_POLL_S = 0.3
_NAME = re.compile(r"^(?:worker_(\d+)|(scheduler))\.log$")


def log_files(attempt: AttemptRow, rank: int | None) -> dict[int, Path]:
    """Each rank's log file that is visible here, -1 for msrun's scheduler (only when asked for)."""
    found: dict[int, Path] = {}
    for directory in _directories(attempt):
        for path in sorted((directory / "logs").glob("*.log")):
            match = _NAME.match(path.name)
            if match is not None:
                number = -1 if match.group(2) else int(match.group(1))
                if number == rank or (rank is None and number >= 0):
                    found[number] = path
    return found


def _directories(attempt: AttemptRow) -> list[Path]:
    plan = attempt.plan
    if plan is None:
        return []
    root = Path(plan["work_root"]) / attempt.job_id / f"attempt-{attempt.number}"
    return sorted(root.glob("node-*"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    attempt: int
    rank: int  # -1 for msrun's scheduler
    line: str


def stream(store: Store, job_id: str, *, attempt: int | None, rank: int | None, follow: bool) -> Iterator[Line]:
    """Lines of the newest (or given) attempt's logs.

    With `follow` it goes on through later attempts until the job is final (or the given attempt has ended), each
    attempt's last lines before the next one's first. NotFoundError if there is no such attempt, or no log of it is
    visible on this machine.
    """
    if store.get(job_id).job.attempt == 0 and not follow:
        raise NotFoundError(f"job {job_id} has had no attempt yet", hint=f"see `rexctl why {job_id}`")
    offsets: dict[Path, int] = {}
    first = attempt or store.get(job_id).job.attempt
    while True:
        row = store.get(job_id)  # before the files are read: what was written until the end is then there
        last = attempt or row.job.attempt
        current = [store.attempt(job_id, number) for number in range(max(first, 1), last + 1)]
        over = row.state.final or (attempt is not None and current[-1].ended_at is not None)
        for one in current:
            for of_rank, path in log_files(one, rank).items():
                for line in _new_lines(path, offsets):
                    yield Line(attempt=one.number, rank=of_rank, line=line)
        first = last if current and current[-1].ended_at is None else first
        if not follow or over:
            break
        time.sleep(_POLL_S)
    if not offsets:
        where = ", ".join(node["host"] for node in current[-1].nodes) if current else "no node"
        of = f" of rank {rank}" if rank is not None else ""
        raise NotFoundError(
            f"job {job_id}, attempt {last}: no log{of} is visible on this machine",
            hint=f"it ran on {where}; the folder there is in `rexctl status {job_id} --json` under nodes",
        )


def _new_lines(path: Path, offsets: dict[Path, int]) -> list[str]:
    """Whole lines that were appended since the last look."""
    with path.open("rb") as file:
        file.seek(offsets.get(path, 0))
        data = file.read()
    complete = data[: data.rfind(b"\n") + 1]
    offsets[path] = offsets.get(path, 0) + len(complete)
    return complete.decode(errors="replace").splitlines()
