"""What the store doctor looks at on a directory besides: durability, and room."""

from __future__ import annotations

import os
import shutil
import time

from cluster.storage.check import Check
from cluster.storage.directory import DirectoryStore
from cluster.storage.scratch import Room

_LOW_BYTES = 1 << 30


def directory_checks(room: Room, store: DirectoryStore) -> list[Check]:
    return [_fsync(room, store), _free_space(store)]


def _fsync(room: Room, store: DirectoryStore) -> Check:
    key = room.key("fsync")
    room.put(key, b"x")
    path = store.root / key
    refused = []
    start = time.perf_counter()
    for name, target, flags in (("file", path, os.O_RDONLY), ("folder", path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(target, flags)
        try:
            os.fsync(descriptor)
        except OSError as error:
            refused.append(f"{name}: {error.strerror}")
        finally:
            os.close(descriptor)
    took_ms = (time.perf_counter() - start) * 1000
    return Check(
        name="fsync of file and folder",
        holds=not refused,
        seen="; ".join(refused) or f"accepted ({took_ms:.1f} ms)",
        meaning="needed: a commit survives a power cut",
    )


def _free_space(store: DirectoryStore) -> Check:
    free = shutil.disk_usage(store.root).free
    return Check(
        name="free space",
        holds=free >= _LOW_BYTES,
        seen=f"{free / 1e9:.1f} GB",
        meaning="below 1 GB the next checkpoints may not fit",
    )
