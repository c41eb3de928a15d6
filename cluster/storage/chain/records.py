"""The small sealed objects of a checkpoint chain: pins, quarantine records, manifests."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.storage.base import ObjectStore
from cluster.storage.chain.seal import UnsealedRecord, canonical, seal, unseal
from jobs.chain import pin_name
from jobs.errors import CorruptCheckpoint, UnknownManifest
from jobs.manifest import Manifest, parse

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A manifest that was found damaged, and how."""

    manifest: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where an attempt starts: from a verified manifest, or from nothing; and what was damaged on the way to it."""

    attempt: int
    manifest: Manifest | None
    quarantined: tuple[Quarantined, ...]


class Pin(BaseModel):
    """`attempts/NNNNNN`: the attempt has started, from this manifest or from nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    attempt: int = Field(ge=1)
    manifest: str | None
    quarantined: tuple[Quarantined, ...] = ()
    nonce: str = Field(min_length=8)
    created_at: float

    def to_bytes(self) -> bytes:
        return seal(self.model_dump(mode="json"))


def read_pin(store: ObjectStore, attempt: int) -> Pin:
    """The pin of that attempt. ObjectNotFound if it is not pinned; CorruptCheckpoint if it is damaged."""
    name = pin_name(attempt)
    values = read_sealed(store, name)
    version = values.get("version")
    if isinstance(version, int) and version > VERSION:
        raise _newer(name, version)
    try:
        pin = Pin.model_validate(values)
    except ValidationError as error:
        raise CorruptCheckpoint(f"pin {name} does not fit the schema: {error.errors()[0]['msg']}") from error
    if pin.attempt != attempt:
        raise CorruptCheckpoint(f"pin {name} says it is of attempt {pin.attempt}")
    return pin


def sealed_manifest(manifest: Manifest) -> bytes:
    """The bytes under the manifest's name: its JSON and, in it, its sha256 (the same as `Manifest.sha256()`)."""
    return seal(manifest.model_dump(mode="json"))


def read_manifest(store: ObjectStore, name: str) -> Manifest:
    """The manifest of that name. ObjectNotFound, CorruptCheckpoint or UnknownManifest otherwise."""
    return parse(canonical(read_sealed(store, name)), name)


def sealed_quarantine(damaged: Quarantined, attempt: int, nonce: str) -> bytes:
    """`quarantine/...`: what the attempt found, for people and for `gc`; no decision reads it."""
    return seal({"version": VERSION, **asdict(damaged), "attempt": attempt, "nonce": nonce, "created_at": time.time()})


def read_sealed(store: ObjectStore, name: str) -> dict[str, Any]:
    """What is sealed under `name`. One that is not sealed our way and says that it is newer is unknown, not damaged.

    What is not as it was sealed is read once more first: see `cluster.storage.chain.content`.
    """
    try:
        try:
            return unseal(store.get(name), name)
        except CorruptCheckpoint:
            return unseal(store.get(name), name)
    except UnsealedRecord as error:
        if isinstance(error.version, int) and error.version > VERSION:
            raise _newer(name, error.version) from error
        raise


def _newer(name: str, version: int) -> UnknownManifest:
    return UnknownManifest(
        f"{name} has version {version}, this code reads up to {VERSION}",
        hint="use the version of rexnet-orchestrator that wrote it, or a newer one",
    )
