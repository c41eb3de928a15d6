"""What every rank was doing: its threads' stacks, written down before it is killed.

py-spy reads them from outside and needs nothing of the program, but the right to trace it. A program that has called
`jobs.contract.dump_stacks_on_request` writes them itself where that right is missing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from jobs.contract import STACKS_SIGNAL, stacks_path

_PY_SPY_S = 5.0
_ITSELF_S = 2.0
_INTERESTING = ("State", "Threads", "VmRSS", "SigBlk", "SigPnd", "voluntary_ctxt_switches")


def program_of(shim: int) -> int | None:
    """The process that a rank shim runs, None once it has ended."""
    try:
        children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def dump(shims: Mapping[int, int], reports: Path, into: Path) -> list[Path]:
    """Write rank_N.txt for each rank (rank -> process id of its shim); returns the files.

    Takes up to `_PY_SPY_S` + `_ITSELF_S` seconds in all: all ranks are asked before the first answer is waited for.
    """
    into.mkdir(parents=True, exist_ok=True)
    pids = {rank: pid for rank, shim in shims.items() if rank >= 0 and (pid := program_of(shim)) is not None}
    asked = {rank: _ask(pid) for rank, pid in pids.items()}
    deadline = time.monotonic() + _PY_SPY_S
    files = []
    for rank, pid in pids.items():
        stacks, problem = _answer(asked[rank], deadline)
        if not stacks:
            stacks = _by_itself(pid, stacks_path(reports, rank)) or f"no stacks: {problem}\n"
        path = into / f"rank_{rank}.txt"
        path.write_text(f"rank {rank}, process {pid}\n{_state(pid)}\n{stacks}")
        files.append(path)
    return files


def _ask(pid: int) -> subprocess.Popen[str]:
    # --nonblocking: a process that was stopped never confirms that it has paused for its tracer.
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--pid", str(pid)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _answer(asked: subprocess.Popen[str], deadline: float) -> tuple[str, str]:
    """py-spy's stacks, or why there are none."""
    try:
        said, _ = asked.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        asked.kill()
        asked.communicate()
        return "", f"py-spy did not answer within {_PY_SPY_S:g} s"
    if asked.returncode != 0 or "Thread" not in said:
        lines = said.strip().splitlines()
        return "", f"py-spy: {lines[-1] if lines else 'no output'}"
    return said, ""


def _by_itself(pid: int, path: Path) -> str:
    """What the program writes when it is asked to; nothing if it has not offered to (the signal would end it)."""
    if not path.exists():
        return ""
    before = path.stat().st_size
    try:
        os.kill(pid, STACKS_SIGNAL)
        os.kill(pid, signal.SIGCONT)  # one that was stopped would not see it
    except ProcessLookupError:
        return ""
    deadline = time.monotonic() + _ITSELF_S
    while path.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)  # it writes line by line
    with path.open() as file:
        file.seek(before)
        return file.read()


def _state(pid: int) -> str:
    """What the kernel says of the process: is it stopped, does it wait in the kernel, and where."""
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        waits_in = Path(f"/proc/{pid}/wchan").read_text()
    except OSError as error:
        return f"state unknown: {error}"
    lines = [line for line in status if line.split(":")[0] in _INTERESTING]
    return "\n".join([*lines, f"waits in:\t{waits_in}"])
