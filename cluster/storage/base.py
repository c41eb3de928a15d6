"""The protocol every object store keeps, and the rules for keys.

Two answers are never mixed up: `ObjectNotFound` is definite (the store answered: no such object), `StoreUnavailable`
is everything not known (time-out, 5xx, throttling, permission, I/O error). Whoever concludes something from a missing
object may do so from the first alone.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cluster.storage.digests import FileDigests
from jobs.errors import AlreadyExistsError, ObjectNotFound, SpecError, StoreUnavailable

# How an object that must be new is written. "create-only": by the store's own exclusive write. "allotted": the store
# has none, so nobody but the job database may allot what the key names; `create` then only looks before and after.
CommitProtocol = Literal["create-only", "allotted"]
PROTOCOLS: tuple[CommitProtocol, ...] = ("create-only", "allotted")

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+@-]*")
_MAX_KEY = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What a writer that was stopped has left behind: it takes room, and no reader ever sees it.

    `key` is what it was to become; `token` tells it from others of that key (an upload id, a file's name).
    """

    key: str
    token: str
    size_bytes: int | None


class ConditionUnsupported(StoreUnavailable):
    """The store does not take a write that depends on a key being free: it needs the protocol "allotted"."""


class ObjectStore(Protocol):
    """Named, immutable bytes. Safe to share between threads. Every method may raise StoreUnavailable.

    Keys are `/`-separated segments of letters, digits and `._=+@-`; a segment does not begin with a dot, and a key is
    not the folder of another one. Anything else is a SpecError before the store is asked.
    """

    @property
    def uri(self) -> str:
        """Where this is, as `open_store` takes it."""
        ...

    @property
    def protocol(self) -> CommitProtocol:
        """How `create` makes sure that an object is new."""
        ...

    def create(self, key: str, body: bytes) -> None:
        """Write a small object that must not exist yet: atomic, durable on return, visible to the next listing.

        Of any number of racing creators with different bodies exactly one succeeds. A creator that finds its own bytes
        has succeeded: that is how a retry after a lost reply ends well, and why bodies carry a nonce.

        With the protocol "allotted" racing creators may all succeed and the last one's bytes stay: it is for keys
        that only one writer was told to write. A key that holds other bytes before or after is found all the same.

        Raises:
            AlreadyExistsError: the key holds other bytes; nothing was changed.
            ConditionUnsupported: the store has no exclusive write; nothing was changed.
            StoreUnavailable: it may or may not have been written; repeat with the same bytes to find out.
        """
        ...

    def put_file(self, key: str, path: Path, digests: FileDigests | None = None) -> None:
        """Write the file's content under `key`, replacing what is there: atomic, durable on return.

        Meant for content-addressed blobs, where replacing changes nothing (and heals a damaged one). A reader sees the
        old or the new object, whole. That the store accepted it is no proof that it kept it: verification reads back.
        `digests` are the file's, from `digest_file`; without them it is read once more. The file must not change.

        Raises:
            OSError: the file cannot be read.
            StoreUnavailable: not written; or the file is no longer what `digests` say.
        """
        ...

    def get(self, key: str) -> bytes:
        """The object's bytes, whole. ObjectNotFound if there is none."""
        ...

    def get_file(self, key: str, path: Path) -> str:
        """Write the object's bytes to a local file, in bounded memory; the SHA-256 (hex) of what was written.

        On any error `path` may be left partly written: download to a temporary name. All bytes are of one object, also
        if it is replaced meanwhile; whether it is the right one, the digest tells. ObjectNotFound if there is none.
        """
        ...

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        """All objects whose key begins with `prefix` ("" for all), by key. Shows every finished write, no other."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; none there is fine."""
        ...

    def leftovers(self, prefix: str) -> builtins.list[Leftover]:
        """Unfinished writes of keys that begin with `prefix`, by key: of writers that were stopped, and of live ones.

        The store cannot tell these apart, and no clock is consulted: who asks must know that nobody writes the key.
        """
        ...

    def discard(self, leftover: Leftover) -> None:
        """Remove an unfinished write; one that is gone, or finished meanwhile, is fine. Its live writer would fail."""
        ...


def check_key(key: str) -> str:
    """`key` itself if it is a valid one, else SpecError."""
    if len(key) > _MAX_KEY or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise SpecError(f"object key {key!r} is not valid", hint="segments of [A-Za-z0-9._=+@-], no leading dot or '/'")
    return key


def check_prefix(prefix: str) -> str:
    """`prefix` itself if a valid key may begin with it, else SpecError."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def create_by_looking(store: ObjectStore, key: str, body: bytes, put: Callable[[], None]) -> None:
    """`create` on a store without exclusive writes: look, `put` without condition, look again."""
    try:
        there = store.get(key)
    except ObjectNotFound:
        put()
        try:
            there = store.get(key)
        except ObjectNotFound as error:
            raise StoreUnavailable(f"{store.uri}: {key} was accepted and is not there", hint="try again") from error
    if there != body:
        raise AlreadyExistsError(f"{store.uri}: {key} exists with other content")
