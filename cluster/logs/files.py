"""The log files of one attempt on one node: their names, reading them from an offset, holding each to a bound.

msrun opens worker_N.log itself and hands the descriptor to the rank, which writes to the file with nobody in between.
So a log is not rotated by renaming: when it gets too long, the blocks of its middle are given back to the file system
(a hole). Its first quarter and its newest part stay, every byte keeps its offset for ever, and a reader loses and
repeats nothing. Why not a pump or copy-truncate: docs/decisions/0008-logs-with-holes.md.

Standard library only: the supervisor imports this.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_AHEAD_BYTES = 4 << 20  # kept free behind a rank's log, so that it can go on writing when the disk is full
_AHEAD_BYTES_NODE = 1 << 18  # behind the others
_LOOK_S = 1.0  # between two looks at the disk
_LEAST_BYTES = 1 << 20  # what stays of a log's newest part when the disk is full
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_BYTES = 1 << 16

SCHEDULER_LOG = "scheduler.log"
NODE_LOGS = ("prepare.log", "supervisor.log", "msrun.log")  # what starts and ends the ranks, in the order of writing

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]


def worker_log(rank: int) -> str:
    return f"worker_{rank}.log"


def log_path(directory: Path, name: str) -> Path:
    """Where a node's log of that name lies. ValueError if no log has such a name (it may come from elsewhere)."""
    if name in NODE_LOGS:
        return directory / name
    if "/" in name or not name.endswith(".log"):
        raise ValueError(f"{name!r} is no log's name")
    return directory / "logs" / name


def workers_logs(directory: Path) -> list[str]:
    """Names of the logs that msrun has made: its workers' and its scheduler's."""
    return sorted(path.name for path in (directory / "logs").glob("*.log"))


# -- reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Bytes of a log from `offset` on, which lies behind the one that was asked for if what was between is gone."""

    offset: int
    data: bytes
    end: bool  # nothing follows by now

    @property
    def next_offset(self) -> int:
        return self.offset + len(self.data)


def read_chunk(path: Path, offset: int, max_bytes: int) -> Chunk:
    """What the file holds from `offset` on, up to the next hole. FileNotFoundError if there is no such file."""
    with path.open("rb", buffering=0) as file:
        while True:
            size = os.fstat(file.fileno()).st_size
            start = _next_data(file.fileno(), offset, size)
            data = os.pread(file.fileno(), max_bytes, start) if start < size else b""
            # Where the file system does not tell holes, or one was made while we read, they read as zeros.
            zeros = len(data) - len(data.lstrip(b"\0"))
            start, data = start + zeros, data[zeros:]
            hole = data.find(bytes(BLOCK))
            data = (data if hole < 0 else data[:hole]).rstrip(b"\0")
            if data or start >= size:
                return Chunk(offset=max(offset, start), data=data, end=start + len(data) >= size)
            offset = start


def _next_data(descriptor: int, offset: int, size: int) -> int:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole until the end, or the end
            return max(offset, size)
        if error.errno == errno.EINVAL:  # a file system without SEEK_DATA
            return offset
        raise


def tail_offset(path: Path, num_lines: int) -> int:
    """Where the last `num_lines` lines begin (a last line without its end counts), as far as no hole is in the way."""
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        if num_lines == 0:
            return end
        position, missing = end, num_lines + 1  # the newline before the first wanted line
        while position > 0:
            step = min(_READ_BYTES, position)
            data = os.pread(file.fileno(), step, position - step)
            if position == end and not data.endswith(b"\n"):
                missing -= 1
            hole = data.rfind(b"\0")
            for at in range(len(data) - 1, hole, -1):
                if data[at] == 0x0A:
                    missing -= 1
                    if missing == 0:
                        return position - step + at + 1
            if hole >= 0:
                return position - step + hole + 1
            position -= step
        return 0


class FolderLogs:
    """The logs of one node of one attempt, in a folder that this process sees."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def read(self, offsets: Mapping[str, int], max_bytes: int) -> dict[str, Chunk]:
        """A chunk of each of those logs from its offset on; logs that are not there are left out."""
        chunks = {}
        for name, offset in offsets.items():
            try:
                chunks[name] = read_chunk(log_path(self.directory, name), offset, max_bytes)
            except FileNotFoundError:
                continue
        return chunks

    def tails(self, names: Iterable[str], num_lines: int) -> dict[str, int]:
        """Where the last lines of each of those logs begin; logs that are not there are left out."""
        offsets = {}
        for name in names:
            try:
                offsets[name] = tail_offset(log_path(self.directory, name), num_lines)
            except FileNotFoundError:
                continue
        return offsets


# -- keeping within the bound


class LogKeeper:
    """Holds growing logs to a bound each; `tend` is called often by whoever supervises their writers.

    A log may exceed its bound by what is written between two calls. It keeps its first quarter (how the program was
    started) and its newest part.
    """

    def __init__(self, paths: Iterable[Path], limit_bytes: int) -> None:
        self._logs = [_Kept(path, limit_bytes) for path in paths]
        self._looked_at = 0.0
        self._told: set[str] = set()

    def tend(self) -> Iterator[str]:
        """Look at each log; yields what is worth telling, once each.

        A log that cannot be looked at (its folder is removed, its disk gives no answer) is told of and left alone: it
        may outgrow its bound, and what its writer does is not touched by that.
        """
        for log in self._logs:
            try:
                yield from log.tend()
            except OSError as error:
                yield from self._once(f"{log.path.name} cannot be kept to its bound: {error}")
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._looked_at = time.monotonic()
            yield from self._look_at_disk(self._logs[0].path.parent)

    def _look_at_disk(self, parent: Path) -> Iterator[str]:
        try:
            is_full = os.statvfs(parent).f_bavail == 0
        except OSError as error:
            yield from self._once(f"whether there is room for logs is not known: {error}")
            return
        if is_full:
            yield from self._once(
                f"the disk of {parent} is full: the ranks' output goes on in the room that was kept for it"
            )

    def _once(self, told: str) -> Iterator[str]:
        if told not in self._told:
            self._told.add(told)
            yield told

    def close(self) -> None:
        """Their writers have ended: give back what was kept free for them."""
        for log in self._logs:
            with suppress(OSError):  # then `give_back` does, before the logs are shipped
                log.close()


def give_back(directory: Path) -> None:
    """What `LogKeeper.close` does, for the logs of an attempt whose supervisor was killed. Nobody may write them."""
    for path in (directory / "logs").glob("*.log"):
        os.truncate(path, path.stat().st_size)


class _Kept:
    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path, self._limit = path, max(limit_bytes, 16 * BLOCK)
        self._head = _aligned(self._limit // 4)
        self._ahead = _AHEAD_BYTES if path.name.startswith("worker_") else _AHEAD_BYTES_NODE
        self._cut = 0  # where the newest part begins, 0 while nothing was cut
        self._descriptor = -1
        self._reserved = 0  # up to which offset blocks are there
        self._told: set[str] = set()

    def tend(self) -> Iterator[str]:
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return  # not begun yet
        size = os.fstat(self._descriptor).st_size
        if size - self._cut + min(self._cut, self._head) > self._limit:
            yield from self._once(f"{self.path.name} has reached its bound of {self._limit} bytes: its middle goes")
            yield from self._cut_out(self._head, size - (self._limit - self._head - self._limit // 8))
        if self._reserved - size < self._ahead // 2:
            yield from self._reserve(size)

    def _reserve(self, size: int) -> Iterator[str]:
        ahead = self._ahead
        problem = _fallocate(self._descriptor, _KEEP_SIZE, size, ahead)
        if problem in _FULL:
            yield from self._once(f"{self.path.name}: the disk is full: only its newest {_LEAST_BYTES} bytes are kept")
            yield from self._cut_out(min(self._head, _LEAST_BYTES // 4), size - _LEAST_BYTES)
            ahead //= 2
            problem = _fallocate(self._descriptor, _KEEP_SIZE, size, ahead)
        self._reserved = size + (ahead if problem == 0 else 0)

    def _cut_out(self, head: int, end: int) -> Iterator[str]:
        """Give back what lies between the first `head` bytes and `end`."""
        cut = _aligned(end)
        begin = head if head < self._head else max(self._cut, head)
        if cut <= begin:
            return
        problem = _fallocate(self._descriptor, _PUNCH_HOLE | _KEEP_SIZE, begin, cut - begin)
        if problem == 0:
            self._cut, self._head = cut, head
        elif problem == errno.EOPNOTSUPP:
            # msrun's descriptors do not append: their writers go on at their own offset, and before it is a hole.
            size = os.fstat(self._descriptor).st_size
            os.ftruncate(self._descriptor, 0)
            self._cut, self._head = _aligned(size), 0
            yield from self._once(f"{self.path.name}: no holes on this file system: at its bound all of it goes")
        else:
            yield from self._once(f"{self.path.name} cannot be cut: {os.strerror(problem)}")

    def _once(self, told: str) -> Iterator[str]:
        if told not in self._told:
            self._told.add(told)
            yield told

    def close(self) -> None:
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size)  # frees the blocks behind the end
            os.close(self._descriptor)
            self._descriptor = -1


def _aligned(offset: int) -> int:
    return offset // BLOCK * BLOCK


def _fallocate(descriptor: int, mode: int, offset: int, size: int) -> int:
    """fallocate(2); 0 or its errno."""
    return 0 if _LIBC.fallocate(descriptor, mode, offset, size) == 0 else ctypes.get_errno()
