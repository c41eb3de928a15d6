"""The lock between processes: one holder, free when it is gone, and not held on by its children."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.locks import LockHeld, holding

HOLDER = """
import subprocess, sys
from pathlib import Path
from orchestrator.locks import holding
with holding(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    child.wait()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, and a child of it, which outlives it; both gone at the end."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        subprocess.run(["kill", "-9", str(child)], check=True)
        process.kill()
        process.communicate()


def test_lock_of_another_process_is_waited_for_and_free_when_that_was_killed_whatever_its_child_does(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / "stack.lock"
    with holder(path) as process:
        for wait_s in (0.0, 0.2):
            with pytest.raises(LockHeld, match="another process holds"), holding(path, wait_s=wait_s):
                pytest.fail("two hold it")
        killing = threading.Timer(0.2, process.kill)
        killing.start()
        with holding(path):
            assert process.wait(timeout=60) == -9
        with holding(path, wait_s=60):
            pass
        killing.join()


def test_lock_is_let_go_of_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), holding(tmp_path / "lock"):
        raise ZeroDivisionError
    with holding(tmp_path / "lock", wait_s=0):
        pass
