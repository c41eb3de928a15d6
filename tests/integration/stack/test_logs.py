"""Logs on the local stack: a rank that prints without end, what is shipped of it, and one that is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from tests.support.rex import Rex, counting_spec

DOTS = "." * 50
LIMIT = 1 << 20  # log_limit_mib of this stack (conftest.py)


def shipped(rex: Rex, job: str, attempt: int) -> Path:
    folder = Path(rex.home.path, "objects", job, "logs", f"attempt-{attempt}", "node-0")
    deadline = time.monotonic() + 120
    while not (folder / "index.json").exists():
        assert time.monotonic() < deadline, list(folder.glob("*"))
        time.sleep(0.1)
    return folder


def test_rank_that_prints_without_end_keeps_its_first_and_its_newest_lines(rex: Rex, tmp_path: Path) -> None:
    job = rex.submit(counting_spec(tmp_path / "a.yaml", "--steps", 40, "--print_lines", 60_000, "--say_steps"))
    assert rex.finish(job)["state"] == "succeeded"
    log = Path(rex.home.work_root, job, "attempt-1", "node-0", "logs", "worker_0.log")
    assert log.stat().st_size > 3 * LIMIT and log.stat().st_blocks * 512 <= LIMIT + 8192
    printed = rex("logs", job, "--rank", "0").stdout.splitlines()
    gone = next(number for number, line in enumerate(printed) if "bytes are gone" in line)
    assert printed[:3] == ["[0] rank 0 of attempt 1 starts", f"[0] line 0 {DOTS}", f"[0] line 1 {DOTS}"] and gone > 1000
    assert printed[-2] == "[0] step 40" and printed[-1].startswith("[0] final")
    kept = [int(line.split()[2]) for line in printed[gone + 1 :] if line.startswith("[0] line")]
    assert kept == list(range(kept[0], 60_000)) and len(kept) > 5000
    reader = rex.start("logs", job, "--rank", "0")
    assert reader.stdout is not None and "rank 0" in reader.stdout.readline()
    reader.stdout.close()  # as head does, long before the end
    assert reader.wait(60) == 0
    folder = shipped(rex, job, 1)
    assert len(list(folder.glob("worker_0.log*.gz"))) == 2  # what lies before the hole and after it
    log.parent.parent.rename(tmp_path / "away")
    assert rex("logs", job, "--rank", "0").stdout.splitlines() == printed
    assert rex("logs", job, "--supervisor", "-v").stderr.count("the object store") == 1


def test_killed_rank_leaves_its_last_words(rex: Rex, tmp_path: Path) -> None:
    job = rex.submit(counting_spec(tmp_path / "b.yaml", "--steps", 9999, "--crawl_at", 40, "--say_steps", name="last"))
    rex.wait(job, lambda s: bool(s["attempts"]))
    follower = rex.start("logs", "-f", job, "--attempt", "1", "--json")
    os.kill(rex.wait_for_rank(job, 1, past=10), signal.SIGKILL)
    output, _ = follower.communicate(timeout=300)
    assert follower.returncode == 0
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    steps = [int(line["line"].split()[1]) for line in lines if line["rank"] == 1 and line["line"].startswith("step")]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] >= 10
    assert rex("cancel", job).returncode == 0
    rex.finish(job)
    assert rex.processes(job) == []
