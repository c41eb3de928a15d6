"""A directory as object store: local disk, or a share that several hosts mount.

Content is written to `<root>/.tmp`, fsynced, and only then given its name: by link(2) where the name must be new, by
rename(2) where it may be replaced; then the folder is fsynced. So a name never shows half a content, on a crash either
way. Needs a file system with hard links and close-to-open consistency or better (ext4, xfs, NFSv4, Lustre, CephFS).
"""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from cluster.storage.base import ObjectInfo, check_key, check_prefix
from jobs.errors import AlreadyExistsError, ObjectNotFound, StoreUnavailable

_TEMPORARY = ".tmp"
_BLOCK = 1 << 20
_HINTS = {
    errno.ENOSPC: "the disk is full: free space, or use another store",
    errno.EDQUOT: "the quota is used up",
    errno.EACCES: "check owner and mode of the folder",
    errno.EPERM: "the file system refuses this operation; hard links are needed",
    errno.EOPNOTSUPP: "the file system refuses this operation; hard links are needed",
    errno.EROFS: "the file system is mounted read-only",
    errno.EIO: "the disk or share reports an I/O error",
    errno.ESTALE: "the share was exported anew: mount it again",
}


class DirectoryStore:
    """`ObjectStore` over the folder `root`, which the first write makes."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(os.path.normpath(root))
        self._identity: tuple[int, int] | None = None  # device and inode of the root, once seen
        self._durable: set[Path] = set()  # folders whose own name is known to be on disk

    @property
    def uri(self) -> str:
        return f"file://{quote(str(self._root))}"

    def create(self, key: str, body: bytes) -> None:
        target = self._path(key)
        with self._translated(f"create {key}"), self._temporary() as temporary:
            with temporary.open("xb") as file:
                file.write(body)
                _sync(file)
            self._make_folder(target.parent)
            try:
                os.link(temporary, target)
            except FileExistsError:
                if target.read_bytes() != body:
                    raise AlreadyExistsError(f"{self.uri}: {key} exists with other content") from None
            _sync_folder(target.parent)

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        source = path.open("rb")  # if it is missing, that is no fault of the store's
        with source, self._translated(f"write {key}"), self._temporary() as temporary:
            with temporary.open("xb") as file:
                shutil.copyfileobj(source, file, _BLOCK)
                _sync(file)
            self._make_folder(target.parent)
            os.replace(temporary, target)
            _sync_folder(target.parent)

    def get(self, key: str) -> bytes:
        target = self._path(key)
        with self._translated(f"read {key}"), self._definite(key):
            return target.read_bytes()

    def get_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with self._translated(f"read {key} into {path}"):
            with self._definite(key):
                source = target.open("rb")  # its absence alone is definite
            with source, path.open("wb") as file:
                shutil.copyfileobj(source, file, _BLOCK)

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        check_prefix(prefix)
        folder = prefix.rpartition("/")[0]
        with self._translated(f"list {prefix!r}"):
            self._look_at_root()
            found = [info for info in self._walk(folder) if info.key.startswith(prefix)]
            self._look_at_root()
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        target = self._path(key)
        with self._translated(f"delete {key}"):
            try:
                target.unlink()
            except (FileNotFoundError, NotADirectoryError):
                self._look_at_root()
                return
            _sync_folder(target.parent)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _walk(self, folder: str) -> Iterator[ObjectInfo]:
        """Objects below `folder`; what vanishes while we look was deleted, names with a leading dot are ours."""
        try:
            entries = builtins.list(os.scandir(self._root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            key = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(key)
            else:
                with suppress(FileNotFoundError):
                    yield ObjectInfo(key=key, size_bytes=entry.stat().st_size)

    def _look_at_root(self) -> bool:
        """Whether the root exists; StoreUnavailable if it is no longer the folder seen before.

        A share that was unmounted under us leaves an empty mount point: absence there proves nothing.
        """
        try:
            seen = os.stat(self._root)
        except FileNotFoundError:
            if self._identity is not None:
                raise StoreUnavailable(
                    f"{self.uri}: the folder is gone", hint="is its disk or share mounted?"
                ) from None
            return False
        if not stat.S_ISDIR(seen.st_mode):
            raise StoreUnavailable(f"{self.uri} is not a folder", hint="choose another path for the store")
        identity = (seen.st_dev, seen.st_ino)
        if self._identity not in (None, identity):
            raise StoreUnavailable(f"{self.uri}: another folder is there now", hint="is its disk or share mounted?")
        self._identity = identity
        return True

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A fresh name in `<root>/.tmp`, gone at the end whatever happened (a SIGKILL leaves it, unlisted)."""
        self._look_at_root()
        self._make_folder(self._root / _TEMPORARY)
        self._look_at_root()
        path = self._root / _TEMPORARY / uuid.uuid4().hex
        try:
            yield path
        finally:
            with suppress(OSError):  # renamed already, or unlinkable: no reader ever sees it
                path.unlink()

    def _make_folder(self, folder: Path) -> None:
        """Make `folder` and what is missing above it, durably: one that somebody else just made is not yet synced."""
        if folder.is_dir() and (folder in self._durable or folder in self._root.parents):
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        with suppress(PermissionError):  # the folder above an existing root may be unreadable, and is not ours
            _sync_folder(folder.parent)
        self._durable.add(folder)

    @contextmanager
    def _definite(self, key: str) -> Iterator[None]:
        """Turns "no such file" into ObjectNotFound, if the root is the folder it always was."""
        try:
            self._look_at_root()
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._look_at_root()
            raise ObjectNotFound(f"{self.uri} has no object {key}") from None

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown error")
            raise StoreUnavailable(
                f"{self.uri}: cannot {what}: {name}, {error.strerror}", hint=_HINTS.get(error.errno or 0, "")
            ) from error


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
