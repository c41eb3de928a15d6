"""The protocol every object store keeps, and the rules for keys.

Two answers are never mixed up: `ObjectNotFound` is definite (the store answered: no such object), `StoreUnavailable`
is everything not known (time-out, 5xx, throttling, permission, I/O error). Whoever concludes something from a missing
object may do so from the first alone.
"""

from __future__ import annotations

import builtins
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.errors import SpecError

_SEGMENT = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._=+@-]*$")
_MAX_KEY = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    size_bytes: int


class ObjectStore(Protocol):
    """Named, immutable bytes. Safe to share between threads. Every method may raise StoreUnavailable.

    Keys are `/`-separated segments of letters, digits and `._=+@-`; a segment does not begin with a dot, and a key is
    not the folder of another one. Anything else is a SpecError before the store is asked.
    """

    @property
    def uri(self) -> str:
        """Where this is, as `open_store` takes it."""
        ...

    def create(self, key: str, body: bytes) -> None:
        """Write a small object that must not exist yet: atomic, durable on return, visible to the next listing.

        Of any number of racing creators with different bodies exactly one succeeds. A creator that finds its own bytes
        has succeeded: that is how a retry after a lost reply ends well, and why bodies carry a nonce.

        Raises:
            AlreadyExistsError: the key holds other bytes; nothing was changed.
            StoreUnavailable: it may or may not have been written; repeat with the same bytes to find out.
        """
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write the file's content under `key`, replacing what is there: atomic, durable on return.

        Meant for content-addressed blobs, where replacing changes nothing (and heals a damaged one). A reader sees the
        old or the new object, whole. That the store accepted it is no proof that it kept it: verification reads back.
        """
        ...

    def get(self, key: str) -> bytes:
        """The object's bytes, whole. ObjectNotFound if there is none."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Write the object's bytes to a local file, in bounded memory. ObjectNotFound if there is none.

        On any error `path` may be left partly written: download to a temporary name. Content is not verified.
        """
        ...

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        """All objects whose key begins with `prefix` ("" for all), by key. Shows every finished write, no other."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; none there is fine."""
        ...


def check_key(key: str) -> str:
    """`key` itself if it is a valid one, else SpecError."""
    if len(key) > _MAX_KEY or not all(_SEGMENT.match(segment) for segment in key.split("/")):
        raise SpecError(f"object key {key!r} is not valid", hint="segments of [A-Za-z0-9._=+@-], no leading dot or '/'")
    return key


def check_prefix(prefix: str) -> str:
    """`prefix` itself if a valid key may begin with it, else SpecError."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix
