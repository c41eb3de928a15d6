"""The checkpoint manifest: the one small object whose existence makes a checkpoint.

Made in one place (`cluster.storage.chain.checkpoints.commit`) and read through one function (`parse`).
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.errors import CorruptCheckpoint, UnknownManifest

VERSION = 1
PREFIX, OBJECT_PREFIX = "manifests/", "objects/"
_NAME = re.compile(r"manifests/(\d{6})-(\d{9})\.json", re.ASCII)
_OBJECT = re.compile(r"objects/(\d{6})-(\d{9})/([0-9a-f]{64})", re.ASCII)
_SHA256 = r"^[0-9a-f]{64}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Frozen):
    """One file, and the object that holds it: its commit's own, or one of the parent's with the same content.

    `history` marks a part of the run's record, which outlives the state (`jobs.retention`).
    """

    name: str = Field(min_length=1)
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=_SHA256)
    key: str
    history: bool = False

    @model_validator(mode="after")
    def _key_fits(self) -> FileEntry:
        parsed = parse_object(self.key)
        if parsed is None or parsed[2] != self.sha256:
            raise ValueError(f"key {self.key!r} is not that of an object with this sha256")
        return self


class Manifest(_Frozen):
    """What a checkpoint consists of and where it comes from.

    `step` counts optimiser steps from the job's start, `samples` the training samples consumed by them over all
    ranks, `parent` is the name of the manifest that this one continues (None for the first of a chain). `metrics` are
    of the validation of this very state; most states are not validated and have none.
    """

    version: int = VERSION
    job: str
    attempt: int = Field(ge=1)
    step: int = Field(ge=0)
    epoch: int = Field(ge=0)
    samples: int = Field(ge=0)
    parent: str | None
    files: tuple[FileEntry, ...]
    config_sha256: str = Field(pattern=_SHA256)
    world_size: int = Field(ge=1)
    seed: int
    cpus: tuple[int, ...] = ()  # CPUs of rank 0; another number of them voids bit-identity
    code: dict[str, str] = {}  # package version, git commit, dirty
    versions: dict[str, str] = {}  # python, mindspore, numpy, device, digest of the kernels
    certificate: str = ""  # the resume certificate after `step` (jobs.certificate); "" if the program keeps none
    metrics: dict[str, float] = {}
    nonce: str = Field(min_length=8)
    created_at: float

    @property
    def name(self) -> str:
        return manifest_name(self.attempt, self.step)

    def to_bytes(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()

    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def file(self, name: str) -> FileEntry:
        """The entry of that name; CorruptCheckpoint if the manifest has none."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise CorruptCheckpoint(f"manifest {self.name} lists no file {name!r}, only {[f.name for f in self.files]}")


def manifest_name(attempt: int, step: int) -> str:
    """`manifests/000002-000000120.json`: the key (attempt, step), sortable as text."""
    return f"{PREFIX}{attempt:06d}-{step:09d}.json"


def parse_name(name: str) -> tuple[int, int] | None:
    """(attempt, step) of a manifest's name, None if it is no such name."""
    match = _NAME.fullmatch(name)
    return (int(match.group(1)), int(match.group(2))) if match else None


def object_key(attempt: int, step: int, sha256: str) -> str:
    """`objects/000002-000000120/<sha256>`: content that the commit of (attempt, step) brought."""
    return f"{OBJECT_PREFIX}{attempt:06d}-{step:09d}/{sha256}"


def parse_object(key: str) -> tuple[int, int, str] | None:
    """(attempt, step, sha256) of an object's key, None if it is no such key."""
    match = _OBJECT.fullmatch(key)
    return (int(match.group(1)), int(match.group(2)), match.group(3)) if match else None


def parse(body: bytes, name: str) -> Manifest:
    """Read a manifest's bytes. CorruptCheckpoint if they are not one; UnknownManifest if of a newer version."""
    try:
        values: Any = json.loads(body)
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptCheckpoint(f"manifest {name} is not JSON: {error}") from error
    version = values.get("version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise UnknownManifest(
            f"manifest {name} has version {version}, this code reads up to {VERSION}",
            hint="use the version of rexnet-orchestrator that wrote it, or a newer one",
        )
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptCheckpoint(f"manifest {name} does not fit the schema: {where}: {first['msg']}") from error
    if manifest.name != name:
        raise CorruptCheckpoint(f"manifest {name} says it is {manifest.name}")
    return manifest
