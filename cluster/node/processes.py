"""Finding and ending processes by what they carry, never by name: Linux /proc and prctl."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when the thread that forked it ends."""
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def start_afresh() -> None:
    """In a child before its exec: it dies with its parent, and has the signals that the parent ignores for itself."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def rank_as(pid: int) -> list[str]:
    """Give this process, and those it will start, the niceness of another one and its place among those that the kernel
    kills for memory; returns what was not allowed.

    Ray makes its workers the first to be killed (1000 of 1000) and lowers them by 15; training is not to inherit that.
    """
    problems = []
    try:
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, pid))
    except OSError as error:
        problems.append(f"niceness stays {os.getpriority(os.PRIO_PROCESS, 0)}: {error}")
    try:
        Path("/proc/self/oom_score_adj").write_text(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except OSError as error:
        problems.append(f"oom_score_adj stays: {error}")
    return problems


def find_by_environment(name: str, value: str, *, besides: Iterable[int] = ()) -> list[int]:
    """Ids of the live processes with `name=value` in their environment, zombies and `besides` left out.

    Processes of other users are not readable and cannot be ours.
    """
    wanted, skip = f"{name}={value}".encode(), {os.getpid(), *besides}
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) in skip:
            continue
        try:
            if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile, or not ours: a process of this user is always readable
    return [pid for pid in found if is_alive(pid)]


def is_alive(pid: int) -> bool:
    """True unless the process is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def started_at(pid: int) -> int | None:
    """The process's start time in clock ticks since boot: with the id it names a process for good."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def descendants(pid: int) -> dict[int, int]:
    """All processes below `pid`, and itself: id -> start time, which together name a process for good."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue  # gone meanwhile
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    family, found = [pid], {}
    while family:
        member = family.pop()
        started = started_at(member)
        if started is not None:
            found[member] = started
        family += children.get(member, [])
    return found


def end_family(family: dict[int, int], *, timeout_s: float = 20.0) -> list[int]:
    """SIGKILL what is left of a family that `descendants` found; returns who is still alive."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid, started in family.items() if is_alive(pid) and started_at(pid) == started]:
        if time.monotonic() > deadline:
            return left
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    return []


def end_by_environment(
    name: str, value: str, *, grace_s: float = 0.0, timeout_s: float = 20.0, besides: Iterable[int] = ()
) -> list[int]:
    """SIGTERM (if there is a grace), then SIGKILL all processes with `name=value`; returns who is still alive.

    Repeats until none is found, because a process may fork while it is looked for.
    """
    skip = tuple(besides)
    deadline = time.monotonic() + timeout_s
    polite_until = time.monotonic() + grace_s
    asked: set[int] = set()
    while pids := find_by_environment(name, value, besides=skip):
        if time.monotonic() > deadline:
            return pids
        polite = time.monotonic() < polite_until
        for pid in pids:
            if polite and pid in asked:
                continue
            asked.add(pid)
            try:
                os.kill(pid, signal.SIGTERM if polite else signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    return []
