"""The rank shim as msrun runs it: whatever happens, it tells how its rank ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from cluster.node import msrun
from cluster.node.inbox import Inbox
from jobs.contract import ENV_REPORT_DIR, ENV_SOCKET, Exit

SHIM = str(Path(msrun.__file__).with_name("shim.py"))
FAILING = """
import errno, os, runpy, subprocess, sys
def refuse(*_, **__):
    raise {error}
subprocess.Popen = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
IGNORED = """
import signal, sys
sys.exit(any(signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGHUP)))
"""


def run(reports: Path, *argv: str, socket_name: str = "") -> int:
    env = {**os.environ, ENV_REPORT_DIR: str(reports), "RANK_ID": "3", ENV_SOCKET: socket_name}
    return subprocess.run(
        [sys.executable, *argv], env=env, check=False, timeout=120, stderr=subprocess.DEVNULL
    ).returncode


def heard(inbox: Inbox) -> list[dict[str, Any]]:
    messages = [json.loads(data) for data, _ in inbox.receive()]
    inbox.sock.close()
    return messages


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))", Exit.INFRASTRUCTURE),
        ("OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))", Exit.INFRASTRUCTURE),
        ("RuntimeError('a bug')", 1),
    ],
)
def test_program_that_cannot_be_started_is_told_on_disk_and_by_word(tmp_path: Path, error: str, code: int) -> None:
    inbox = Inbox(name := f"rex-test-{uuid.uuid4()}")
    assert run(tmp_path, "-c", FAILING.format(error=error), SHIM, "module", "m", socket_name=name) == code
    outcome = json.loads((tmp_path / "outcome_3.json").read_text())
    assert (outcome["rank"], outcome["code"], outcome["signal"]) == (3, code, None)
    assert "its program could not be run: " in outcome["reason"]
    assert heard(inbox) == [{"kind": "outcome", **outcome}]


def test_outcome_that_no_disk_takes_is_said(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("raise SystemExit(7)")
    inbox = Inbox(name := f"rex-test-{uuid.uuid4()}")
    assert run(tmp_path / "none", SHIM, "script", str(tmp_path / "program.py"), socket_name=name) == 7
    hello, outcome = heard(inbox)
    assert hello["kind"] == "hello" and (outcome["code"], outcome["rank"]) == (7, 3)
    assert "could not be written" in outcome["reason"]


def test_program_has_the_signals_that_its_supervisor_ignores_for_itself(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(IGNORED)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        assert run(tmp_path, SHIM, "script", str(tmp_path / "program.py")) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
