"""Stack dumps of real processes: within their time, and no reason to fail for whoever asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.node import stacks
from jobs.contract import ENV_REPORT_DIR, stacks_path

SHIM = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
WRITES_ITSELF = """
import sys, time
from jobs.contract import dump_stacks_on_request
def deep_inside():
    dump_stacks_on_request(int(sys.argv[1]))
    open(sys.argv[2], "w").close()
    time.sleep(600)
deep_inside()
"""
MUTE = "import sys, time; open(sys.argv[2], 'w').close(); time.sleep(600)"


class Ranks:
    """Processes as a rank's shim and its program."""

    def __init__(self, reports: Path) -> None:
        self.reports = reports
        self.shims: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, rank: int, program: str) -> None:
        ready = self.reports / f"ready_{rank}"
        self.shims[rank] = subprocess.Popen(
            [sys.executable, "-c", SHIM, program, str(rank), str(ready)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, ENV_REPORT_DIR: str(self.reports)},
        )
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def dump(self, into: Path, within_s: float) -> list[str]:
        shims = {rank: shim.pid for rank, shim in self.shims.items()}
        files = stacks.dump(shims, self.reports, into, within_s=within_s)
        assert [path.name for path in files] == [f"rank_{rank}.txt" for rank in self.shims]
        return [path.read_text() for path in files]

    def end(self) -> None:
        for shim in self.shims.values():
            program = stacks.program_of(shim.pid)
            if program is not None:
                os.kill(program, signal.SIGKILL)
            shim.wait(timeout=60)


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    (tmp_path / "reports").mkdir()
    made = Ranks(tmp_path / "reports")
    yield made
    made.end()


def test_py_spy_sees_a_program_that_offers_nothing(ranks: Ranks, tmp_path: Path) -> None:
    ranks.start(0, MUTE)
    (said,) = ranks.dump(tmp_path / "stacks", 120.0)
    assert "Thread" in said and "State:" in said


def test_programs_write_their_stacks_themselves_where_py_spy_cannot(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks.start(0, WRITES_ITSELF)
    ranks.start(1, WRITES_ITSELF)
    ranks.start(2, MUTE)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # py-spy is looked for beside it
    monkeypatch.setattr(stacks, "_LINES_S", 3.0)
    first, second, third = ranks.dump(tmp_path / "stacks", 60.0)
    assert "deep_inside" in first and "deep_inside" in second
    assert "no stacks: py-spy cannot be started" in third and "State:" in third


class Clock:
    """In place of the module `time`: a sleep takes none."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_ranks_that_say_nothing_share_one_deadline(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each for itself would keep its supervisor from its lease."""
    for rank in range(4):
        ranks.start(rank, MUTE)
        stacks_path(ranks.reports, rank).touch()  # as if it had offered to
    clock = Clock()
    monkeypatch.setattr(stacks, "time", clock)
    monkeypatch.setattr(stacks, "STACKS_SIGNAL", 0)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    said = ranks.dump(tmp_path / "stacks", 4.0)
    assert all("no stacks" in one for one in said)
    assert 4.0 <= clock.now < 4.5
