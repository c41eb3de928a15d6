"""The metrics journal: every point goes here first, with the timestamp it keeps for ever.

MLflow's key of a point is (key, timestamp, step, run, value), so sending one twice adds nothing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.errors import CorruptCheckpoint
from rexnet.backlog import Backlog

log = logging.getLogger("rexnet.train")


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric; `step` counts optimiser steps done."""

    key: str
    value: float
    step: int
    timestamp_ms: int


def to_lines(points: Iterable[Point]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(point), sort_keys=True) + "\n" for point in points).encode()


def from_lines(body: bytes, source: str) -> list[Point]:
    """The points in a journal's segment; CorruptCheckpoint if it is none."""
    try:
        return [Point(**json.loads(line)) for line in body.splitlines()]
    except (ValueError, TypeError) as error:
        raise CorruptCheckpoint(f"{source} is no metrics journal: {error}") from error


class Journal(Backlog[Point]):
    """The points of this attempt: all of them in a local file, those not yet committed also in memory."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._unwritten, self._is_full = b"", False

    def add(self, step: int, values: dict[str, float]) -> list[Point]:
        """Record these values at `step`, now; returns the points."""
        now = int(time.time() * 1000)
        points = [Point(key, float(value), step, now) for key, value in values.items()]
        self._append(points)
        self._write(to_lines(points))
        return points

    def _write(self, lines: bytes) -> None:
        """A full disk ends no training: what finds no room in the file is kept until it does."""
        self._unwritten += lines
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            self._is_full = False
        except OSError as error:
            if not self._is_full:
                log.warning("action=journal cause=%s: its points are kept in memory until there is room", error)
            self._is_full = True

    def close(self) -> None:
        self._file.close()
