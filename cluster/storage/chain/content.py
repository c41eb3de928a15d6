"""Content-addressed files, verified on the way in.

What does not compare is read once more before it is called altered: a bit that flipped in our memory or on the way says
nothing of the store, and the verdict costs a checkpoint. That there is no such object is definite at once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from cluster.storage.base import ObjectStore
from jobs.errors import CorruptCheckpoint, ObjectNotFound, StoreUnavailable
from jobs.manifest import FileEntry

_T = TypeVar("_T")


def checked_bytes(store: ObjectStore, entry: FileEntry, manifest: str) -> bytes:
    """The content of `entry`; CorruptCheckpoint if it is missing or other than it was."""

    def read() -> tuple[bytes, str]:
        body = store.get(entry.key)
        return body, _difference(entry, len(body), hashlib.sha256(body).hexdigest())

    return _read(read, entry, manifest)


def verified_download(store: ObjectStore, entry: FileEntry, target: Path, manifest: str) -> None:
    """Put the content of `entry` at `target`, whole and verified; CorruptCheckpoint otherwise, `target` untouched."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")

    def read() -> tuple[None, str]:
        sha256 = store.get_file(entry.key, temporary)
        return None, _difference(entry, temporary.stat().st_size, sha256)

    try:
        _read(read, entry, manifest)
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def verify_blob(store: ObjectStore, entry: FileEntry, manifest: str) -> None:
    """Read the content of `entry` back in bounded memory; CorruptCheckpoint if missing or other than it was.

    It goes through a temporary file; where there is no room for one nothing is known: StoreUnavailable.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="rex-verify-") as folder:
            verified_download(store, entry, Path(folder) / "blob", manifest)
    except OSError as error:  # of the local disk: a store translates its own
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        raise StoreUnavailable(
            f"manifest {manifest}: file {entry.name} cannot be verified here: {name}, {error.strerror}",
            hint="the folder for temporary files (TMPDIR) needs room for the largest file of a checkpoint",
        ) from error


def _read(read: Callable[[], tuple[_T, str]], entry: FileEntry, manifest: str) -> _T:
    """What `read` gives, if it says of the first or the second try that nothing is wrong with it."""
    try:
        found, problem = read()
        if problem:
            found, problem = read()
    except ObjectNotFound as error:
        raise CorruptCheckpoint(f"manifest {manifest}: file {entry.name} is missing: no object {entry.key}") from error
    if problem:
        raise CorruptCheckpoint(f"manifest {manifest}: file {entry.name} {problem}")
    return found


def _difference(entry: FileEntry, size_bytes: int, sha256: str) -> str:
    """How a content of that size and SHA-256 is other than `entry`; "" if it is not."""
    if size_bytes != entry.size_bytes:
        return f"has {size_bytes} bytes instead of {entry.size_bytes}"
    if sha256 != entry.sha256:
        return f"is altered: sha256 {sha256[:12]} instead of {entry.sha256[:12]}"
    return ""
