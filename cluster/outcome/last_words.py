"""What a process said last and what the kernel says of it: gathered by the rank shim, judged by `exits`.

Standard library only: every rank's shim imports this.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

NOT_STARTED = "its program could not be run"  # what a shim says whose program never began
_READ_BYTES = 256 << 10
_KEEP_CHARS = 6000
_LAST_LINES = 12
_LINE_CHARS = 400
_REASON_CHARS = 300
# An exception's own line, as the interpreter prints it: it starts in the first column.
RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt|Warning|Exit)(?::|$)")
# Lines that may tell why, whatever came after them: errors of Python, MindSpore's logger, CANN (EI0006 and the like).
_TELLING = re.compile(
    r"Error|Exception|Traceback|\[CRITICAL\]|\[ERROR\]|\bE[A-Z]\d{4}\b|registered node number|Kill this process"
    r"|(?i:out of memory|memory not enough|bad_alloc|no space left|already in use|killed)"
)
_ROUTINE = re.compile(r"^\[(?:WARNING|INFO|DEBUG|EVENT)\]")  # MindSpore and CANN say much while all is well
_DIGITS = re.compile(r"[0-9a-f]*\d[0-9a-f]*")  # numbers, times, addresses: what differs in a line that is said again
_KERNEL_OOM = re.compile(r"(?:Out of memory|Memory cgroup out of memory|oom-kill|invoked oom-killer)")


def last_words(text: str) -> tuple[str, str]:
    """(reason, tail): the one line that tells most, and the lines that tell something, newest last.

    The tail holds the last lines as they are and, before them, those that look like errors.
    """
    lines = [line.rstrip()[:_LINE_CHARS] for line in text.splitlines() if line.strip()]
    raised = [line for line in lines if RAISED.match(line)]
    errors = [line for line in lines if "[CRITICAL]" in line or "[ERROR]" in line]
    spoken = [line.strip() for line in lines if not _ROUTINE.match(line)]
    reason = (raised or errors or [" | ".join(spoken[-5:])])[-1]
    earlier = [line for line in lines[:-_LAST_LINES] if _TELLING.search(line)]
    tail = "\n".join(_said_last([*earlier, *lines[-_LAST_LINES:]]))
    return reason[:_REASON_CHARS].strip(), tail[-_KEEP_CHARS:]


def own_words(reason: str, tail: str) -> str:
    """Of what `last_words` found, what tells of a failure of this very process.

    That is the reason, what came with it or behind it, and earlier lines that are errors by their form (a chain of
    exceptions begins with its cause). Other earlier lines tell of what the process went on after: a full disk, say,
    that made it keep its points in memory.
    """
    lines = tail.splitlines()
    at = [number for number, line in enumerate(lines) if reason and line.strip().startswith(reason)]
    since = at[-1] if at else len(lines)
    earlier = [line for line in lines[:since] if RAISED.match(line) or "[CRITICAL]" in line or "[ERROR]" in line]
    return "\n".join([*earlier, *lines[since:], reason])


def _said_last(lines: Iterable[str]) -> list[str]:
    """The lines without those that are said again later with other numbers: a retry is told thirty times."""
    newest: dict[str, str] = {}
    for line in lines:
        key = _DIGITS.sub("#", line)
        newest.pop(key, None)
        newest[key] = line
    return list(newest.values())


def own_output() -> str:
    """The end of this process's own output file: msrun points every worker's stdout at one. "" for anything else."""
    try:
        with Path("/proc/self/fd/1").open("rb") as output:
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - _READ_BYTES))
            return output.read().decode(errors="replace")
    except OSError:
        return ""  # a pipe or a terminal: nothing to read back


@dataclass(frozen=True)
class OomCount:
    """How many processes the kernel has killed for memory: in our own cgroup, and on the host; None if unreadable."""

    cgroup: int | None
    host: int | None
    at: float  # by the monotonic clock, which stamps the kernel's log

    @classmethod
    def now(cls) -> OomCount:
        at = time.clock_gettime(time.CLOCK_MONOTONIC)
        return cls(cgroup=_counter(_cgroup_file(), "oom_kill"), host=_counter(Path("/proc/vmstat"), "oom_kill"), at=at)

    def since(self, before: OomCount) -> dict[str, object] | None:
        """What was killed since `before`: {"cgroup", "host", "line" of the kernel}; None if nothing was."""
        cgroup = (self.cgroup or 0) - (before.cgroup or 0)
        host = (self.host or 0) - (before.host or 0)
        line = _kernel_line(before.at)
        if cgroup <= 0 and host <= 0 and not line:
            return None
        return {"cgroup": max(0, cgroup), "host": max(0, host), "line": line}


def _counter(path: Path | None, name: str) -> int | None:
    try:
        text = path.read_text() if path else ""
    except OSError:
        return None
    found = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None


def _cgroup_file(root: Path = Path("/sys/fs/cgroup"), listing: Path = Path("/proc/self/cgroup")) -> Path | None:
    """Where our cgroup counts its OOM kills: memory.events (v2) or memory.oom_control (v1).

    In a container the path may be the host's own name for it, while what is mounted is already our group.
    """
    try:
        entries = [line.split(":", 2) for line in listing.read_text().splitlines()]
    except OSError:
        return None
    paths = {kind: path.lstrip("/") for _, kind, path in entries}
    candidates = []
    if "memory" in paths:
        candidates += [root / "memory" / paths["memory"] / "memory.oom_control", root / "memory" / "memory.oom_control"]
    if "" in paths:
        candidates += [root / paths[""] / "memory.events", root / "memory.events"]
    return next((path for path in candidates if path.is_file()), None)


def _kernel_line(since: float) -> str:
    """The kernel's newest line about an OOM kill since `since` seconds after boot; "" if none, or not readable."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""  # needs CAP_SYSLOG, or a container hides it
    found = ""
    try:
        while True:
            try:
                record = os.read(log, 8192).decode(errors="replace")
            except BrokenPipeError:
                continue  # overwritten while we read: the next read goes on behind it
            except OSError:
                return found  # the end
            head, _, text = record.partition(";")
            at = head.split(",")[2] if head.count(",") >= 3 else ""
            if at.isdigit() and int(at) / 1e6 >= since - 1.0 and _KERNEL_OOM.search(text):
                found = text.splitlines()[0][:_LINE_CHARS]
    finally:
        os.close(log)
