"""Logs in the object store: how they lie there, writing those of one node, and reading them by their old offsets.

Below a job's store, `logs/attempt-<n>/node-<r>/` holds `<file>.gz` for each file. A log with a hole, or of more than
64 MiB, lies in several pieces; those after the first have their offset in their name (`<file>.<offset>.gz`).
`index.json` names them all and is written last: without it nothing is said to be there.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cluster.logs.files import NODE_LOGS, Chunk, log_path, read_chunk, workers_logs
from cluster.storage.base import ObjectStore
from jobs.errors import IntegrityError, ObjectNotFound

PIECE_BYTES = 64 << 20  # before compression: bounds what the shipping process holds in memory
_READ_BYTES = 1 << 20
_LEVEL = 6
_NO_KEY = re.compile(r"[^A-Za-z0-9._=+@-]")


def prefix(attempt: int, node_rank: int) -> str:
    return f"logs/attempt-{attempt}/node-{node_rank}/"


def files_to_ship(directory: Path) -> dict[str, Path]:
    """Name -> path of all that is worth keeping of a node's attempt, small ones first."""
    found = {name: directory / name for name in ("ended.json", *NODE_LOGS)}
    found.update({name: log_path(directory, name) for name in workers_logs(directory)})
    found.update({f"stacks/{_NO_KEY.sub('_', path.name)}": path for path in (directory / "stacks").glob("*")})
    there = {name: path for name, path in found.items() if path.is_file()}
    return dict(sorted(there.items(), key=lambda item: item[1].stat().st_size))


# -- writing


def ship(store: ObjectStore, directory: Path, attempt: int, node_rank: int) -> tuple[int, int]:
    """Write the node's files, then the index that names them; number of files and of bytes before compression.

    Repeating it replaces what is there by the same. StoreUnavailable if not everything was written.
    """
    base = prefix(attempt, node_rank)
    files = files_to_ship(directory)
    entries: dict[str, Any] = {}
    for name, path in files.items():
        pieces: list[dict[str, Any]] = []
        for offset, size_bytes, body in _pieces(path):
            key = f"{base}{name}.gz" if not pieces else f"{base}{name}.{offset}.gz"
            store.put_file(key, body)
            pieces.append({"key": key, "offset": offset, "size_bytes": size_bytes})
        entries[name] = {"size_bytes": path.stat().st_size, "pieces": pieces}
    index = {"attempt": attempt, "node_rank": node_rank, "host": socket.gethostname(), "files": entries}
    with _memory() as file:
        file.write(json.dumps(index, indent=1).encode())
        file.flush()
        store.put_file(f"{base}index.json", _path_of(file))
    return len(files), sum(piece["size_bytes"] for entry in entries.values() for piece in entry["pieces"])


def _pieces(path: Path) -> Iterator[tuple[int, int, Path]]:
    """Offset, size and compressed body of each stretch of the file; the body is there until the next one is asked for.

    It is in memory: the disk may be full.
    """
    offset, end = 0, False
    while not end:
        with _memory() as file:
            chunk = read_chunk(path, offset, _READ_BYTES)
            begin = offset = chunk.offset
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=_LEVEL, mtime=0) as packed:
                while chunk.data and chunk.offset == offset and offset - begin < PIECE_BYTES:
                    packed.write(chunk.data)
                    offset = chunk.next_offset
                    chunk = read_chunk(path, offset, _READ_BYTES)
            file.flush()
            end = not chunk.data
            if offset > begin:
                yield begin, offset - begin, _path_of(file)


@contextmanager
def _memory() -> Iterator[BinaryIO]:
    with os.fdopen(os.memfd_create("rex-logs", os.MFD_CLOEXEC), "w+b") as file:
        yield file


def _path_of(file: BinaryIO) -> Path:
    return Path(f"/proc/self/fd/{file.fileno()}")


# -- reading


class ShippedLogs:
    """The shipped logs of one node of one attempt: the same face as `cluster.logs.files.FolderLogs`.

    Raises:
        ObjectNotFound: on construction: they were not shipped (yet).
        IntegrityError: what the index names is missing or damaged.
        StoreUnavailable: not known.
    """

    def __init__(self, store: ObjectStore, attempt: int, node_rank: int) -> None:
        self._store = store
        key = f"{prefix(attempt, node_rank)}index.json"
        try:
            self._files: dict[str, Any] = json.loads(store.get(key))["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{store.uri}: {key} cannot be read: {error!r}") from error
        self._unpacked: tuple[str, bytes] = ("", b"")

    def read(self, offsets: Mapping[str, int], max_bytes: int) -> dict[str, Chunk]:
        return {name: self._read(name, at, max_bytes) for name, at in offsets.items() if name in self._files}

    def tails(self, names: Iterable[str], num_lines: int) -> dict[str, int]:
        return {name: self._tail(name, num_lines) for name in names if name in self._files}

    def _read(self, name: str, offset: int, max_bytes: int) -> Chunk:
        pieces = self._files[name]["pieces"]
        for piece in pieces:
            if piece["offset"] + piece["size_bytes"] > offset:
                start = max(offset, piece["offset"])
                data = self._body(piece["key"])[start - piece["offset"] :][:max_bytes]
                last = pieces[-1]
                return Chunk(offset=start, data=data, end=start + len(data) >= last["offset"] + last["size_bytes"])
        return Chunk(offset=max(offset, self._files[name]["size_bytes"]), data=b"", end=True)

    def _tail(self, name: str, num_lines: int) -> int:
        if num_lines == 0:
            return int(self._files[name]["size_bytes"])
        missing, begin, after = num_lines + 1, 0, 0
        for number, piece in enumerate(reversed(self._files[name]["pieces"])):
            body, begin = self._body(piece["key"]), piece["offset"]
            at = len(body)
            if number == 0 and not body.endswith(b"\n"):
                missing -= 1
            elif number > 0 and piece["offset"] + len(body) != after:
                return int(after)  # a hole is in the way
            while missing and (at := body.rfind(b"\n", 0, at)) >= 0:
                missing -= 1
            if not missing:
                return int(begin + at + 1)
            after = begin
        return int(begin)

    def _body(self, key: str) -> bytes:
        if self._unpacked[0] != key:
            try:
                self._unpacked = (key, gzip.decompress(self._store.get(key)))
            except (OSError, EOFError, zlib.error) as error:
                raise IntegrityError(f"{self._store.uri}: {key} is damaged: {error}") from error
            except ObjectNotFound as error:
                raise IntegrityError(f"{self._store.uri}: {key} is missing, and its index names it") from error
        return self._unpacked[1]
