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

LONGEST_S = 7.0
_ITSELF_SHARE = 2 / 7  # of the time, kept for programs that write their stacks themselves
_LINES_S = 0.2  # they write line by line, and are through when nobody has written for so long
_INTERESTING = ("State", "Threads", "VmRSS", "SigBlk", "SigPnd", "voluntary_ctxt_switches")


def program_of(shim: int) -> int | None:
    """The process that a rank shim runs, None once it has ended."""
    try:
        children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def dump(shims: Mapping[int, int], reports: Path, into: Path, *, within_s: float = LONGEST_S) -> list[Path]:
    """Write rank_N.txt for each rank (rank -> process id of its shim); returns the files. OSError on a full disk.

    Takes `within_s` seconds at the most, for all ranks together: all are asked before the first answer is waited for.
    """
    into.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + within_s
    pids = {rank: pid for rank, shim in shims.items() if rank >= 0 and (pid := program_of(shim)) is not None}
    asked = {rank: _ask(pid) for rank, pid in pids.items()}
    told = {rank: _answer(asked[rank], deadline - within_s * _ITSELF_SHARE) for rank in pids}
    mute = {rank: pid for rank, pid in pids.items() if not told[rank][0]}
    itself = _by_itself({rank: (pid, stacks_path(reports, rank)) for rank, pid in mute.items()}, deadline)
    files = []
    for rank, pid in pids.items():
        stacks = told[rank][0] or itself.get(rank) or f"no stacks: {told[rank][1]}\n"
        path = into / f"rank_{rank}.txt"
        path.write_text(f"rank {rank}, process {pid}\n{_state(pid)}\n{stacks}")
        files.append(path)
    return files


def _ask(pid: int) -> subprocess.Popen[str] | str:
    """py-spy at work on that process, or why it cannot be started."""
    # --nonblocking: a process that was stopped never confirms that it has paused for its tracer.
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--pid", str(pid)]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        return f"py-spy cannot be started: {error}"


def _answer(asked: subprocess.Popen[str] | str, deadline: float) -> tuple[str, str]:
    """py-spy's stacks, or why there are none."""
    if isinstance(asked, str):
        return "", asked
    try:
        said, _ = asked.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        asked.kill()
        asked.communicate()
        return "", "py-spy did not answer in time"
    if asked.returncode != 0 or "Thread" not in said:
        lines = said.strip().splitlines()
        return "", f"py-spy: {lines[-1] if lines else 'no output'}"
    return said, ""


def _by_itself(programs: Mapping[int, tuple[int, Path]], deadline: float) -> dict[int, str]:
    """What programs write when they are asked to, by rank (-> process id, its file); none of those that have not
    offered to (the signal would end them)."""
    begun: dict[int, tuple[Path, int]] = {}
    for rank, (pid, path) in programs.items():
        try:
            before = path.stat().st_size
            os.kill(pid, STACKS_SIGNAL)
            os.kill(pid, signal.SIGCONT)  # one that was stopped would not see it
        except (FileNotFoundError, ProcessLookupError):
            continue
        begun[rank] = (path, before)
    seen: list[int] = []
    while begun and time.monotonic() < deadline:
        sizes = [path.stat().st_size for path, _ in begun.values()]
        if sizes == seen and all(size > before for size, (_, before) in zip(sizes, begun.values(), strict=True)):
            break
        seen = sizes
        time.sleep(_LINES_S)
    said = {}
    for rank, (path, before) in begun.items():
        with path.open() as file:
            file.seek(before)
            said[rank] = file.read()
    return said


def _state(pid: int) -> str:
    """What the kernel says of the process: is it stopped, does it wait in the kernel, and where."""
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        waits_in = Path(f"/proc/{pid}/wchan").read_text()
    except OSError as error:
        return f"state unknown: {error}"
    lines = [line for line in status if line.split(":")[0] in _INTERESTING]
    return "\n".join([*lines, f"waits in:\t{waits_in}"])
