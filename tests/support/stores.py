"""Object stores with faults: a thin wrapper around a real one that fails, or does something, where told."""

from __future__ import annotations

import builtins
import hashlib
import threading
from pathlib import Path

from cluster.storage import ObjectInfo, ObjectStore
from cluster.storage.base import CommitProtocol, Leftover
from cluster.storage.digests import FileDigests
from jobs.errors import AlreadyExistsError, ObjectNotFound, StoreUnavailable


class Wrapped:
    """Everything as the store behind it does; `before` is called with the operation and its key or prefix."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def before(self, operation: str, key: str) -> None:
        """Overridden by what a test wants."""

    @property
    def uri(self) -> str:
        return self.store.uri

    @property
    def protocol(self) -> CommitProtocol:
        return self.store.protocol

    def create(self, key: str, body: bytes) -> None:
        self.before("create", key)
        self.store.create(key, body)

    def put_file(self, key: str, path: Path, digests: FileDigests | None = None) -> None:
        self.before("put_file", key)
        self.store.put_file(key, path, digests)

    def get(self, key: str) -> bytes:
        self.before("get", key)
        return self.store.get(key)

    def get_file(self, key: str, path: Path) -> str:
        self.before("get_file", key)
        return self.store.get_file(key, path)

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        self.before("list", prefix)
        return self.store.list(prefix)

    def delete(self, key: str) -> None:
        self.before("delete", key)
        self.store.delete(key)

    def leftovers(self, prefix: str) -> builtins.list[Leftover]:
        self.before("leftovers", prefix)
        return self.store.leftovers(prefix)

    def discard(self, leftover: Leftover) -> None:
        self.before("discard", leftover.key)
        self.store.discard(leftover)


class Failing(Wrapped):
    """A store of which some requests are not known: StoreUnavailable for keys with that prefix."""

    def __init__(self, store: ObjectStore, operation: str, prefix: str) -> None:
        super().__init__(store)
        self._operation, self._prefix = operation, prefix

    def before(self, operation: str, key: str) -> None:
        if operation == self._operation and key.startswith(self._prefix):
            raise StoreUnavailable(f"{operation} {key}: timed out")


class Memory:
    """The whole contract in a dictionary: for tests that need thousands of stores."""

    uri = "memory://"
    protocol: CommitProtocol = "create-only"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def create(self, key: str, body: bytes) -> None:
        with self._lock:
            if self.objects.setdefault(key, body) != body:
                raise AlreadyExistsError(f"{key} exists with other content")

    def put_file(self, key: str, path: Path, digests: FileDigests | None = None) -> None:
        body = path.read_bytes()
        with self._lock:
            self.objects[key] = body

    def get(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise ObjectNotFound(f"no object {key}") from None

    def get_file(self, key: str, path: Path) -> str:
        body = self.get(key)
        path.write_bytes(body)
        return hashlib.sha256(body).hexdigest()

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        with self._lock:
            found = [(key, len(body)) for key, body in self.objects.items() if key.startswith(prefix)]
        return [ObjectInfo(key=key, size_bytes=size) for key, size in sorted(found)]

    def delete(self, key: str) -> None:
        with self._lock:
            self.objects.pop(key, None)

    def leftovers(self, prefix: str) -> builtins.list[Leftover]:
        return []

    def discard(self, leftover: Leftover) -> None:
        raise AssertionError("there are none")
