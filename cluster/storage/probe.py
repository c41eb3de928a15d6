"""The preflight of a store: can it be written, read, listed and deleted from here, now?"""

from __future__ import annotations

import uuid
from contextlib import suppress

from cluster.storage.base import ObjectStore
from jobs.errors import ObjectNotFound, StoreUnavailable


def probe(store: ObjectStore) -> None:
    """Write, read back, list and delete one small object below `probe/`.

    Raises:
        StoreUnavailable: one of these does not work, which and why.
    """
    key = f"probe/{uuid.uuid4().hex}"
    try:
        _write_and_read(store, key)
    except BaseException:
        with suppress(StoreUnavailable):  # the first error is the one to tell
            store.delete(key)
        raise
    store.delete(key)
    if store.list(key):
        raise StoreUnavailable(f"{store.uri}: {key} is still listed after it was deleted", hint=_HINT)


_HINT = "`rexctl storage doctor` tells what this store does"


def _write_and_read(store: ObjectStore, key: str) -> None:
    body = f"{key} may be deleted".encode()
    store.create(key, body)
    try:
        there = store.get(key)
    except ObjectNotFound as error:
        raise StoreUnavailable(f"{store.uri}: {key} was written and cannot be read", hint=_HINT) from error
    if there != body:
        raise StoreUnavailable(f"{store.uri}: {key} was written and reads back otherwise", hint=_HINT)
    if key not in [info.key for info in store.list(key)]:
        raise StoreUnavailable(f"{store.uri}: {key} was written and is not listed", hint=_HINT)
