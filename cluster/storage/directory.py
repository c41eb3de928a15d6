"""A directory as object store: local disk, or a share that several hosts mount.

Content is written to `<root>/.tmp` under a name that tells its key, fsynced, and only then given its own name: by
link(2) where that must be new, by rename(2) where it may be replaced; then the folder is fsynced. So a name never
shows half a content, on a crash either way. Needs a file system with hard links and close-to-open consistency or
better (ext4, xfs, NFSv4, Lustre, CephFS); without hard links the protocol "allotted".
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from cluster.storage.base import (
    CommitProtocol,
    ConditionUnsupported,
    Leftover,
    ObjectInfo,
    check_key,
    check_prefix,
    create_by_looking,
)
from cluster.storage.digests import FileDigests
from jobs.errors import AlreadyExistsError, ObjectNotFound, SpecError, StoreUnavailable

_TEMPORARY = ".tmp"
_BLOCK = 1 << 20
_PIECE = 200  # characters: a name may have 255, a key 512
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
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

    def __init__(self, root: str | Path, protocol: CommitProtocol = "create-only") -> None:
        self._root = Path(os.path.normpath(root))
        self._protocol = protocol
        self._identity: tuple[int, int] | None = None  # device and inode of the root, once seen
        self._durable: set[Path] = set()  # folders whose own name is known to be on disk

    @property
    def uri(self) -> str:
        return f"file://{quote(str(self._root))}"

    @property
    def protocol(self) -> CommitProtocol:
        return self._protocol

    @property
    def root(self) -> Path:
        return self._root

    def create(self, key: str, body: bytes) -> None:
        if self._protocol == "allotted":
            return create_by_looking(self, key, body, lambda: self._create(key, body, os.replace))
        return self._create(key, body, os.link)

    def _create(self, key: str, body: bytes, name: Callable[[Path, Path], None]) -> None:
        target = self._path(key)
        with self._translated(f"create {key}"), self._temporary(key) as temporary:
            with temporary.open("xb") as file:
                file.write(body)
                _sync(file)
            self._make_folder(target.parent)
            try:
                name(temporary, target)
            except FileExistsError:
                if target.read_bytes() != body:
                    raise AlreadyExistsError(f"{self.uri}: {key} exists with other content") from None
            except OSError as error:
                if name is os.link and error.errno in _NO_LINKS:
                    raise ConditionUnsupported(
                        f"{self.uri}: cannot create {key}: the file system has no hard links",
                        hint="`rexctl storage doctor` chooses another protocol for it",
                    ) from error
                raise
            _sync_folder(target.parent)

    def put_file(self, key: str, path: Path, digests: FileDigests | None = None) -> None:
        target = self._path(key)
        source = path.open("rb")  # if it is missing, that is no fault of the store's
        with source, self._translated(f"write {key}"), self._temporary(key) as temporary:
            with temporary.open("xb") as file:
                copied = hashlib.sha256()
                while block := source.read(_BLOCK):
                    file.write(block)
                    if digests is not None:
                        copied.update(block)
                _sync(file)
                if digests is not None and (file.tell(), copied.hexdigest()) != (digests.size_bytes, digests.sha256):
                    raise StoreUnavailable(
                        f"{self.uri}: {path} is no longer what {key} was to be: {file.tell()} bytes, "
                        f"{digests.size_bytes} were hashed",
                        hint="the file was altered while it was written",
                    )
            self._make_folder(target.parent)
            os.replace(temporary, target)
            _sync_folder(target.parent)

    def get(self, key: str) -> bytes:
        target = self._path(key)
        with self._translated(f"read {key}"), self._definite(key):
            return target.read_bytes()

    def get_file(self, key: str, path: Path) -> str:
        target = self._path(key)
        digest = hashlib.sha256()
        with self._translated(f"read {key} into {path}"):
            with self._definite(key):
                source = target.open("rb")  # its absence alone is definite
            with source, path.open("wb") as file:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    file.write(block)
        return digest.hexdigest()

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

    def remove_empty(self, prefix: str) -> None:
        """Remove the folders below `prefix` ("a/b/"), which nobody else may be using, as far as they are empty."""
        check_prefix(prefix)
        for folder, _, _ in os.walk(self._root / prefix, topdown=False):
            with suppress(OSError):  # not empty: what is in it is kept
                Path(folder).rmdir()
            self._durable.discard(Path(folder))

    def leftovers(self, prefix: str) -> builtins.list[Leftover]:
        check_prefix(prefix)
        found = []
        with self._translated(f"look for unfinished writes of {prefix!r}"):
            self._look_at_root()
            for path in self._files_below(self._root / _TEMPORARY):
                token = path.relative_to(self._root / _TEMPORARY).as_posix()
                key = token.replace("/", "").rpartition("~")[0].replace(",", "/")
                with suppress(FileNotFoundError):  # its writer has finished
                    if key.startswith(prefix):
                        found.append(Leftover(key=key, token=token, size_bytes=path.stat().st_size))
        return sorted(found, key=lambda leftover: (leftover.key, leftover.token))

    def discard(self, leftover: Leftover) -> None:
        folder = self._root / _TEMPORARY
        path = folder / leftover.token
        if ".." in path.parts or not path.is_relative_to(folder):
            raise SpecError(f"{leftover.token!r} is no unfinished write", hint="take it from `leftovers`")
        with self._translated(f"discard an unfinished write of {leftover.key}"):
            path.unlink(missing_ok=True)

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

    def _files_below(self, folder: Path) -> Iterator[Path]:
        try:
            entries = builtins.list(os.scandir(folder))
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._files_below(Path(entry.path))
            else:
                yield Path(entry.path)

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
    def _temporary(self, key: str) -> Iterator[Path]:
        """A fresh name in `<root>/.tmp`, gone at the end whatever happened (a SIGKILL leaves it to `leftovers`).

        It is the key with a comma for each slash, and `~` with random digits; a long one is cut into folders.
        """
        name = f"{key.replace('/', ',')}~{uuid.uuid4().hex}"
        pieces = [name[at : at + _PIECE] for at in range(0, len(name), _PIECE)]
        path = self._root.joinpath(_TEMPORARY, *pieces)
        self._look_at_root()
        self._make_folder(path.parent)
        self._look_at_root()
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
