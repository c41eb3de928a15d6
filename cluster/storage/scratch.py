"""What is in a store for a moment only: probes and the doctor's rooms, and how those of killed ones are removed.

    probe/<uuid>             one object
    doctor/<uuid>/mark       the first object of a room
    doctor/<uuid>/...        what the doctor tries out in it

Nobody can tell a killed one's objects from those of one that is at work. So no work is harmed by their removal: whose
first object is gone concludes nothing from what it saw, and begins again under a new name, which whoever removes things
has not listed. A room's mark is removed before all else in it. No clock is consulted.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from cluster.storage.base import ObjectInfo, ObjectStore
from cluster.storage.directory import DirectoryStore
from jobs.errors import ObjectNotFound

PROBE, DOCTOR = "probe/", "doctor/"
NUM_TRIES = 3  # one collection can spoil one of them; a store that loses what was written spoils them all
_MARK = "mark"


class Room:
    """A folder of our own in the store: what is written through it is removed when it is left."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.prefix = f"{DOCTOR}{uuid.uuid4().hex}/"
        self._keys: list[str] = []
        self._local = tempfile.TemporaryDirectory(prefix="rex-doctor-")

    def __enter__(self) -> Room:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._local.cleanup()
        # By what was written, not by what is listed: the listing is among the things not to be trusted.
        for key in self._keys:
            self.store.delete(key)
        for leftover in self.store.leftovers(self.prefix):
            self.store.discard(leftover)
        remove_folders(self.store, [self.prefix])

    def mark(self) -> None:
        """Write the mark; to be done before all else."""
        self.put(self.key(_MARK), self.prefix.encode())

    def is_marked(self) -> bool:
        """Whether nobody has removed anything from here: the mark would have gone first."""
        return self.read(self.prefix + _MARK) == self.prefix.encode()

    def key(self, name: str) -> str:
        self._keys.append(self.prefix + name)
        return self._keys[-1]

    @property
    def path(self) -> Path:
        """A local file for whatever is to be sent or received."""
        return Path(self._local.name, "file")

    def put(self, key: str, body: bytes) -> None:
        self.path.write_bytes(body)
        self.store.put_file(key, self.path)

    def read(self, key: str) -> bytes | None:
        try:
            return self.store.get(key)
        except ObjectNotFound:
            return None


def is_scratch(key: str) -> bool:
    """Whether it is a probe or a doctor that writes such a key."""
    return key.startswith((PROBE, DOCTOR))


def list_scratch(store: ObjectStore) -> list[ObjectInfo]:
    """All that probes and doctors have there, in the order in which it is to be removed."""
    return _marks_first([*store.list(DOCTOR), *store.list(PROBE)])


def sweep_rooms(store: ObjectStore, seen: Iterable[ObjectInfo]) -> None:
    """Remove the rooms in which nothing has changed since `seen` was listed: a doctor at work changes its own."""
    leftovers = store.leftovers(DOCTOR)
    now = store.list(DOCTOR)
    changed = {_room(info.key) for info in {*seen} ^ {*now}}
    left = [info for info in now if _room(info.key) not in changed]
    for info in _marks_first(left):
        store.delete(info.key)
    for leftover in leftovers:
        if _room(leftover.key) in {_room(info.key) for info in left}:
            store.discard(leftover)
    remove_folders(store, [info.key for info in left])


def remove_folders(store: ObjectStore, keys: Iterable[str]) -> None:
    """Remove the empty folders that the rooms of these keys leave in a directory."""
    if isinstance(store, DirectoryStore):
        for room in {_room(key) for key in keys if key.startswith(DOCTOR)}:
            store.remove_empty(room)


def _marks_first(found: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    return sorted(found, key=lambda info: (not info.key.endswith(f"/{_MARK}"), info.key))


def _room(key: str) -> str:
    """`doctor/<uuid>/` of a key in that room."""
    return "/".join(key.split("/")[:2]) + "/"
