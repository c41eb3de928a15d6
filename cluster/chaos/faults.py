"""Faults on one node: find the victim by what it carries, strike, and undo what is to pass.

Runs on the node itself, in a Ray task. What undoes a fault is a process of its own, which outlives the task, the Ray
node and whoever asked for it: nothing stays stopped because the cluster went down in between.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from cluster.node.ending import ENDED_FILE, ENV_SUPERVISES
from cluster.node.processes import find_by_environment, started_at
from jobs.contract import ENV_TOKEN

_ENDING_S = 12.0  # for a supervisor that has said how its attempt ended; a campaign waits for our answer for 15
_FILLINGS = 5  # tries to take all of a disk on which others write
VICTIMS = ("worker", "msrun", "scheduler", "supervisor", "agent", "ray_node")


def find(victim: str, token: str, agent: int | None) -> int | None:
    """The process id of that part of the attempt on this node; None if this node has none now.

    The lowest id where there are several (ranks). A Ray node is the parent of its agent, and of its task: us.
    """
    if victim == "agent":
        return agent
    if victim == "ray_node":
        parent = _parent(agent or os.getpid())
        return parent if parent is not None and _name(parent) == "raylet" else None
    if victim == "supervisor":
        return min(find_by_environment(ENV_SUPERVISES, token), default=None)
    found = [pid for pid in find_by_environment(ENV_TOKEN, token) if _role(pid) == victim]
    return min(found, default=None)


def _role(pid: int) -> str | None:
    """What a process that carries the token is: its arguments and environment tell."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        env = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return None
    is_shim = any(word.endswith("cluster/node/shim.py") for word in words)
    if is_shim and any(word.rpartition("/")[2] == "msrun" for word in words):
        return "msrun" if words[0].rpartition("/")[2].startswith("python") else None
    if is_shim or not any(entry.startswith(("RANK_ID=", "MS_ROLE=")) for entry in env):
        return None
    return "scheduler" if "MS_ROLE=MS_SCHED" in env else "worker"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def strike(how: str, victim: str, token: str, agent: int | None, pause_s: float) -> dict[str, Any] | None:
    """`how`: kill (SIGKILL) or stop (SIGSTOP, and SIGCONT after `pause_s`). What was struck, if it was there."""
    pid = find(victim, token, agent)
    born = started_at(pid) if pid is not None else None
    if pid is None or born is None:
        return None
    if how == "kill":
        os.kill(pid, signal.SIGKILL)
    elif not _apart(pause_s, ["stop", str(pid), str(born)]):
        return None
    return {"pid": pid, "at": time.time()}


def fill_disk(folder: str, pause_s: float, keep_bytes: int = 0) -> dict[str, Any]:
    """Leave `keep_bytes` of the folder's file system; the file goes after `pause_s`."""
    path = Path(folder, f".chaos-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _apart(pause_s, ["unlink", str(path), "0"]):
        raise OSError(f"{path} would not be removed again: no process could be started for that")
    with path.open("wb") as file:
        for _ in range(_FILLINGS):
            space = os.statvfs(folder)
            free = space.f_bfree if os.geteuid() == 0 else space.f_bavail  # root may use what is reserved for it
            size_bytes = max(1, free * space.f_frsize - keep_bytes)
            try:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
                break
            except OSError as error:
                if error.errno != errno.ENOSPC:  # somebody has just written: less is free now
                    raise
    return {"path": str(path), "size_bytes": size_bytes, "at": time.time()}


def _apart(wait_s: float, what: list[str]) -> bool:
    """Have `what` done, or undone, in a process that nobody's end takes along; False if it did not get to it."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster.chaos.faults", str(wait_s), *what],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """WAIT_S stop PID START | WAIT_S unlink PATH 0: fork off; stop, wait, go on; or wait and unlink.

    One process stops and lets go on: with two, the second may come first, and what is stopped stays so. Ends with 0
    once it is stopped, with 1 if it is not that process any more.
    """
    wait_s, what, name, born = float(arguments[0]), *arguments[1:]
    told, tell = os.pipe()
    if os.fork() > 0:
        os.close(tell)
        return 0 if os.read(told, 1) else 1
    os.setsid()
    if what == "stop" and not _signal(int(name), int(born), signal.SIGSTOP):
        return 1
    os.write(tell, b"!")
    time.sleep(wait_s)
    if what == "stop":
        _signal(int(name), int(born), signal.SIGCONT)
    else:
        Path(name).unlink(missing_ok=True)
    return 0


def _signal(pid: int, born: int, number: signal.Signals) -> bool:
    """Send it, if the process still is the one that began then."""
    if started_at(pid) != born:
        return False
    os.kill(pid, number)
    return True


def _left_of(tokens: Iterable[str]) -> list[str]:
    """Number and command line of every process that carries one of the tokens."""
    found = {
        pid for token in tokens for name in (ENV_TOKEN, ENV_SUPERVISES) for pid in find_by_environment(name, token)
    }
    return [f"{pid} {' '.join(_words(pid))}".strip() for pid in sorted(found)]


def _words(pid: int) -> list[str]:
    """Its command line; nothing where it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return []


def look(work_root: str, job: str, tokens: Collection[str]) -> dict[str, Any]:
    """What this node can testify: who is left of these attempts, and when each of them began and ended here."""
    deadline = time.monotonic() + _ENDING_S
    while (orphans := _left_of(tokens)) and time.monotonic() < deadline:
        time.sleep(0.1)
    spans = []
    for start in sorted(Path(work_root, job).glob("attempt-*/node-*/start.json")):
        end = start.with_name(ENDED_FILE)
        began = json.loads(start.read_text())
        spans.append(
            {
                "attempt": int(start.parent.parent.name.removeprefix("attempt-")),
                "node_rank": int(start.parent.name.removeprefix("node-")),
                "host": began["host"],
                "began": began["at"],
                "ended": json.loads(end.read_text())["at"] if end.exists() else None,
            }
        )
    return {"host": os.uname().nodename, "orphans": orphans, "spans": spans}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
