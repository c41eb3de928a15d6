"""Content-addressed files, verified on the way in."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from cluster.storage.base import ObjectStore
from jobs.errors import CorruptCheckpoint, ObjectNotFound
from jobs.manifest import FileEntry


def checked_bytes(store: ObjectStore, entry: FileEntry, manifest: str) -> bytes:
    """The content of `entry`; CorruptCheckpoint if it is missing or other than it was."""
    try:
        body = store.get(entry.key)
    except ObjectNotFound as error:
        raise _missing(entry, manifest) from error
    _compare(entry, manifest, len(body), hashlib.sha256(body).hexdigest())
    return body


def verified_download(store: ObjectStore, entry: FileEntry, target: Path, manifest: str) -> None:
    """Put the content of `entry` at `target`, whole and verified; CorruptCheckpoint otherwise, `target` untouched."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            sha256 = store.get_file(entry.key, temporary)
        except ObjectNotFound as error:
            raise _missing(entry, manifest) from error
        _compare(entry, manifest, temporary.stat().st_size, sha256)
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def verify_blob(store: ObjectStore, entry: FileEntry, manifest: str) -> None:
    """Read the content of `entry` back in bounded memory; CorruptCheckpoint if missing or other than it was."""
    with tempfile.TemporaryDirectory(prefix="rex-verify-") as folder:
        verified_download(store, entry, Path(folder) / "blob", manifest)


def _missing(entry: FileEntry, manifest: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"manifest {manifest}: file {entry.name} is missing: no object {entry.key}")


def _compare(entry: FileEntry, manifest: str, size_bytes: int, sha256: str) -> None:
    if size_bytes != entry.size_bytes:
        raise CorruptCheckpoint(
            f"manifest {manifest}: file {entry.name} has {size_bytes} bytes instead of {entry.size_bytes}"
        )
    if sha256 != entry.sha256:
        raise CorruptCheckpoint(
            f"manifest {manifest}: file {entry.name} is altered: sha256 {sha256[:12]} instead of {entry.sha256[:12]}"
        )
