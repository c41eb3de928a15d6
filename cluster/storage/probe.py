"""The preflight of a store: can it be written, read, listed and deleted from here, now?"""

from __future__ import annotations

import uuid
from contextlib import suppress

from cluster.storage.base import ObjectStore
from cluster.storage.scratch import NUM_TRIES, PROBE
from jobs.errors import ObjectNotFound, StoreUnavailable

_HINT = "`rexctl storage doctor` tells what this store does"


class _Gone(StoreUnavailable):
    """What was written is not there: a collection took it for a killed probe's, or the store has lost it."""


def probe(store: ObjectStore) -> None:
    """Write, read back, list and delete one small object below `probe/`.

    If it vanishes meanwhile, that is tried again under another name: see `cluster.storage.scratch`.

    Raises:
        StoreUnavailable: one of these does not work, which and why.
    """
    for _ in range(NUM_TRIES - 1):
        with suppress(_Gone):
            return _probe(store)
    return _probe(store)


def _probe(store: ObjectStore) -> None:
    key = f"{PROBE}{uuid.uuid4().hex}"
    try:
        _write_and_read(store, key)
    except BaseException:
        with suppress(StoreUnavailable):  # the first error is the one to tell
            store.delete(key)
        raise
    store.delete(key)
    if store.list(key):
        raise StoreUnavailable(f"{store.uri}: {key} is still listed after it was deleted", hint=_HINT)


def _write_and_read(store: ObjectStore, key: str) -> None:
    body = f"{key} may be deleted".encode()
    store.create(key, body)
    try:
        there = store.get(key)
    except ObjectNotFound as error:
        raise _Gone(f"{store.uri}: {key} was written and cannot be read", hint=_HINT) from error
    if there != body:
        raise StoreUnavailable(f"{store.uri}: {key} was written and reads back otherwise", hint=_HINT)
    if key not in [info.key for info in store.list(key)]:
        raise _Gone(f"{store.uri}: {key} was written and is not listed", hint=_HINT)
