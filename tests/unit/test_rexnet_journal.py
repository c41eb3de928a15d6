"""Points keep their timestamps; a replay adds only what a run lacks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.errors import CorruptCheckpoint
from rexnet.journal import Journal, Point, from_lines, to_lines
from rexnet.tracking import JobRun


class FakeMlflow:
    """Keeps rows as MLflow's table does: one for each (key, timestamp, step, value)."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [row for row in self.rows if row.key == key]

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.rows += [SimpleNamespace(key=m.key, step=m.step, value=m.value, timestamp=m.timestamp) for m in metrics]


def points(steps: range, at: int = 0) -> list[Point]:
    return [Point("train_loss", 1 / step, step, at + step) for step in steps]


def test_lines_bring_back_the_same_points() -> None:
    before = [Point("a", 0.1 + 0.2, 3, 1700000000000), Point("b", -1e-300, 4, 1700000000001)]
    assert from_lines(to_lines(before), "x") == before


@pytest.mark.parametrize("body", [b"{", b"[1]\n", b'{"key": "a"}\n'])
def test_damaged_segment_is_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptCheckpoint, match="segment 7"):
        from_lines(body, "segment 7")


def test_committed_points_leave_the_pending_ones(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    for step in range(1, 6):
        journal.add(step, {"train_loss": float(step)})
    journal.committed(3)
    assert [point.step for point in journal.pending()] == [4, 5]
    journal.close()
    assert len(from_lines((tmp_path / "j.jsonl").read_bytes(), "j")) == 5


def test_replaying_twice_adds_nothing() -> None:
    client: Any = FakeMlflow()
    assert JobRun(client, "r").send(points(range(1, 6))) == 5
    assert JobRun(client, "r").send(points(range(1, 8))) == 2
    assert JobRun(client, "r").send(points(range(1, 8))) == 0
    assert [row.step for row in client.rows] == list(range(1, 8))


def test_steps_trained_again_after_damage_do_not_fold_the_curve() -> None:
    client: Any = FakeMlflow()
    run = JobRun(client, "r")
    run.send(points(range(1, 10)))
    run.send(points(range(6, 12), at=1000))
    assert [row.step for row in client.rows] == list(range(1, 12))


def test_full_disk_ends_no_training_and_loses_no_point(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(Path("/dev/full"))
    first = [*journal.add(1, {"a": 1.0}), *journal.add(2, {"a": 2.0})]
    assert journal.pending() == first
    assert caplog.text.count("No space left on device") == 1
    journal.close()
    journal._file = (tmp_path / "j.jsonl").open("ab", buffering=0)
    points = [*first, *journal.add(3, {"a": 3.0})]
    journal.close()
    assert from_lines((tmp_path / "j.jsonl").read_bytes(), "j.jsonl") == points
