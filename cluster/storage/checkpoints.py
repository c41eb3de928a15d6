"""Commit, verify and resume: the chain of checkpoints of one job over an object store.

Layout below the store's prefix, which belongs to one job:

    attempts/000002                          pin: attempt 2 has started, from this manifest or none; create-only
    manifests/000002-000000120.json          the commit of (attempt 2, step 120); create-only
    objects/<sha256>                         content of the files that manifests name
    quarantine/000001-000000100.000002.json  attempt 2 found that manifest damaged, and why

Files first, the manifest last: without a valid manifest there is no checkpoint. Which manifests are alive is decided
by `jobs.chain` from pins and parents alone, with no clock. Damage must be definite (bytes were read, or the store said
that there is no such object) before anything is quarantined; StoreUnavailable passes through every method unchanged.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.storage.base import ObjectStore
from cluster.storage.content import blob_key, checked_bytes, hash_file, verified_download, verify_blob
from cluster.storage.lineage import complete_parents
from cluster.storage.records import Pin, Quarantined, Start, read_manifest, read_pin, sealed_manifest, sealed_quarantine
from cluster.storage.survey import Survey, survey_store
from jobs.chain import PIN_PREFIX, live, parse_pin_name, pin_name
from jobs.errors import (
    AlreadyExistsError,
    CorruptCheckpoint,
    FencedError,
    IntegrityError,
    ObjectNotFound,
    SpecError,
    UnknownManifest,
)
from jobs.manifest import FileEntry, Manifest, manifest_name, parse_name

__all__ = ["CheckpointStore", "Listed", "Quarantined", "Start"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A manifest in the store: on the live chain or a dead branch; `problem` if it cannot be read."""

    name: str
    live: bool
    manifest: Manifest | None
    problem: str = ""


class CheckpointStore:
    """The checkpoints of `job` in `store`. One instance a writer: its nonce tells its own retries from other writers.

    Methods that read raise CorruptCheckpoint for definite damage, UnknownManifest for a newer version, and
    StoreUnavailable for not knowing.
    """

    def __init__(self, store: ObjectStore, job: str) -> None:
        self._store = store
        self._job = job
        self._nonce = uuid.uuid4().hex
        self._pins: dict[int, Pin] = {}  # pins never change: read once

    def start_attempt(self, attempt: int | None, *, must_resume: str | None = None) -> Start:
        """Decide where an attempt starts, and pin it: from here on all older attempts are fenced off.

        Walks back from the newest live manifest to the first that verifies fully; what is damaged is quarantined.
        Repeating the call on the same instance, after StoreUnavailable say, gives the same start.

        Args:
            attempt: the number allotted to us; None allots the next free one (bare runs).
            must_resume: a manifest that this job is known to have committed.

        Returns:
            the start; its manifest is None only if this job never had a live manifest, as far as the store and
            `must_resume` can tell.

        Raises:
            FencedError: the number is not above all pinned ones, or a newer attempt was pinned meanwhile.
            CorruptCheckpoint: there should be a checkpoint and none verifies; nothing is pinned.
            UnknownManifest: the newest live manifest is of a newer version; nothing is pinned or quarantined.
            StoreUnavailable: not knowing; nothing is pinned or quarantined on it.
        """
        if attempt is not None and not 1 <= attempt <= 999_999:
            raise SpecError(f"job {self._job}: attempt {attempt} is not within 1 to 999999")
        while True:
            survey = survey_store(self._store, self._pins)
            newest = max(survey.pins, default=0)
            number = newest + 1 if attempt is None else attempt
            if number <= newest:
                ours = survey.pins.get(number)
                if number == newest and ours is not None and ours.nonce == self._nonce:
                    return self.pinned(number)
                raise self._fenced(number, newest)
            manifest, quarantined = self._choose(survey, number, must_resume)
            pin = Pin(
                attempt=number,
                manifest=manifest.name if manifest else None,
                quarantined=quarantined,
                nonce=self._nonce,
                created_at=time.time(),
            )
            try:
                self._store.create(pin_name(number), pin.to_bytes())
            except AlreadyExistsError as error:
                if attempt is None:
                    continue  # another starter took this number: the next look allots the one after it
                taken = read_pin(self._store, number)
                if taken.nonce != self._nonce:
                    raise self._fenced(number, number) from error
                return self.pinned(number)
            newest = self._newest_attempt()
            if newest > number:
                raise self._fenced(number, newest)
            return Start(attempt=number, manifest=manifest, quarantined=quarantined)

    def pinned(self, attempt: int) -> Start:
        """What `start_attempt` decided for that attempt, as every rank of it must see it.

        Raises:
            ObjectNotFound: the attempt is not pinned (yet).
        """
        pin = self._pin(attempt)
        manifest = None
        if pin.manifest is not None:
            try:
                manifest = self.load(pin.manifest)
            except ObjectNotFound as error:
                raise CorruptCheckpoint(f"{pin_name(attempt)} starts from {pin.manifest}, which is missing") from error
        return Start(attempt=attempt, manifest=manifest, quarantined=pin.quarantined)

    def commit(
        self,
        *,
        attempt: int,
        step: int,
        epoch: int,
        samples: int,
        parent: str | None,
        files: Mapping[str, Path],
        config_sha256: str,
        world_size: int,
        seed: int,
        cpus: tuple[int, ...] = (),
        code: Mapping[str, str],
        versions: Mapping[str, str],
        metrics: Mapping[str, float],
        certificate: str = "",
    ) -> Manifest:
        """Make the checkpoint (attempt, step) of these files; durable on return. The files must not change meanwhile.

        `parent` is this attempt's previous manifest, or the one it started from (None: it started from nothing).
        Repeating a commit on the same instance, after StoreUnavailable say, is safe.

        Raises:
            FencedError: a newer attempt is pinned, or this one never was. A commit that slips through just before
                the newer pin is a dead branch by the liveness rule, unless that pin starts from it.
            AlreadyExistsError: another writer has committed (attempt, step); the message says who.
            SpecError: `parent` is not one that this attempt can have.
        """
        self._check_fence(attempt)
        self._check_parent(attempt, step, parent)
        entries = []
        for name, path in files.items():
            size_bytes, sha256 = hash_file(path)
            entries.append(FileEntry(name=name, size_bytes=size_bytes, sha256=sha256))
            self._store.put_file(blob_key(sha256), path)
        manifest = Manifest(
            job=self._job,
            attempt=attempt,
            step=step,
            epoch=epoch,
            samples=samples,
            parent=parent,
            files=tuple(entries),
            config_sha256=config_sha256,
            world_size=world_size,
            seed=seed,
            cpus=cpus,
            code=dict(code),
            versions=dict(versions),
            metrics=dict(metrics),
            certificate=certificate,
            nonce=self._nonce,
            created_at=time.time(),
        )
        self._check_fence(attempt)
        try:
            self._store.create(manifest.name, sealed_manifest(manifest))
        except AlreadyExistsError as error:
            return self._own_commit(manifest, error)
        return manifest

    def fetch(self, manifest: Manifest, name: str, target: Path) -> None:
        """Download a file of the checkpoint to `target`: whole and verified, or not at all (CorruptCheckpoint)."""
        verified_download(self._store, manifest.file(name), target, manifest.name)

    def read(self, manifest: Manifest, name: str) -> bytes:
        """The verified bytes of a small file of the checkpoint; CorruptCheckpoint otherwise."""
        return checked_bytes(self._store, manifest.file(name), manifest.name)

    def load(self, name: str) -> Manifest:
        """The manifest of that name, its own seal checked. ObjectNotFound if there is none."""
        return read_manifest(self._store, name)

    def verify(self, manifest: Manifest) -> None:
        """Read all files of the checkpoint; CorruptCheckpoint with the reason if one is missing or not as it was."""
        if manifest.job != self._job:
            raise CorruptCheckpoint(f"manifest {manifest.name} belongs to job {manifest.job}, not to {self._job}")
        for entry in manifest.files:
            verify_blob(self._store, entry, manifest.name)

    def history(self, manifest: Manifest) -> list[Manifest]:
        """`manifest` and its ancestors, newest first, as far as they are there and readable.

        Complete if the last one's parent is None. Ancestors carry no state that a resume needs, so a lost one ends
        the list and raises nothing.
        """
        line = [manifest]
        while (parent := line[-1].parent) is not None and parent not in {known.name for known in line}:
            try:
                line.append(self.load(parent))
            except (ObjectNotFound, IntegrityError):
                break
        return line

    def manifests(self) -> list[Listed]:
        """All manifests, newest (attempt, step) first, live ones and dead branches. Files are not verified."""
        survey = survey_store(self._store, self._pins)
        alive = set(self._live(survey))
        found = []
        for name in sorted(survey.manifests, reverse=True):
            read = survey.manifests[name]
            manifest, problem = (read, "") if isinstance(read, Manifest) else (None, str(read))
            found.append(Listed(name=name, live=name in alive, manifest=manifest, problem=problem))
        return found

    def newest(self) -> Manifest | None:
        """The newest live manifest that verifies, None if there is none. Writes nothing."""
        survey = survey_store(self._store, self._pins)
        for name in self._live(survey):
            try:
                return self._verified(survey, name)
            except CorruptCheckpoint:
                continue  # reading only: whoever starts an attempt quarantines it
        return None

    def _choose(
        self, survey: Survey, attempt: int, must_resume: str | None
    ) -> tuple[Manifest | None, tuple[Quarantined, ...]]:
        """The newest live manifest that verifies, and what was quarantined on the way to it."""
        damaged: list[Quarantined] = []
        for name in self._live(survey, must_resume):
            try:
                manifest = self._verified(survey, name)
            except CorruptCheckpoint as error:
                damaged.append(Quarantined(manifest=name, reason=str(error)))
            else:
                self._quarantine(damaged, attempt)
                return manifest, tuple(damaged)
        expected = [must_resume, *(pin.manifest for pin in survey.pins.values())]
        committed = next((name for name in expected if name is not None), None)
        if committed is None and not damaged:
            return None, ()
        self._quarantine(damaged, attempt)
        seen = (
            "; ".join(item.reason for item in damaged) or f"the store lists {len(survey.manifests)}, none of them live"
        )
        raise CorruptCheckpoint(
            f"job {self._job} has committed {committed or damaged[0].manifest} and no checkpoint in {self._store.uri} "
            f"verifies: {seen}",
            hint="it is not started from zero by itself: check the store's URI and mount, restore the objects, "
            "or submit the job anew",
        )

    def _live(self, survey: Survey, must_resume: str | None = None) -> list[str]:
        """Live manifests, newest first: those listed, and those that must be there and are not."""
        pins = {attempt: pin.manifest for attempt, pin in survey.pins.items()}
        required = {name for name in (must_resume, pins.get(max(pins, default=0))) if name is not None}
        known = {name: read.parent for name, read in survey.manifests.items() if isinstance(read, Manifest)}
        parents = complete_parents(known, survey.manifests.keys() | required, pins)
        return [name for name in live(parents, pins) if name in survey.manifests or name in required]

    def _verified(self, survey: Survey, name: str) -> Manifest:
        """The manifest of that name if it and all its files are right, else CorruptCheckpoint."""
        read = survey.manifests.get(name)
        if read is None:
            raise CorruptCheckpoint(f"manifest {name} is missing: the store has no such object")
        if isinstance(read, UnknownManifest | CorruptCheckpoint):
            raise read
        self.verify(read)
        return read

    def _quarantine(self, damaged: list[Quarantined], attempt: int) -> None:
        """Record what is damaged; called once the walk is through, so that not knowing leaves no trace at all."""
        for item in damaged:
            base = item.manifest.rpartition("/")[2].removesuffix(".json")
            body = sealed_quarantine(item, attempt, self._nonce)
            with suppress(AlreadyExistsError):  # one that tried the same number has said so already
                self._store.create(f"quarantine/{base}.{attempt:06d}.json", body)

    def _pin(self, attempt: int) -> Pin:
        if attempt not in self._pins:
            self._pins[attempt] = read_pin(self._store, attempt)
        return self._pins[attempt]

    def _newest_attempt(self) -> int:
        return max((parse_pin_name(info.key) or 0 for info in self._store.list(PIN_PREFIX)), default=0)

    def _check_fence(self, attempt: int) -> None:
        newest = self._newest_attempt()
        if newest > attempt:
            raise self._fenced(attempt, newest)
        try:
            self._pin(attempt)
        except ObjectNotFound as error:
            raise FencedError(
                f"job {self._job}: attempt {attempt} is not pinned in {self._store.uri}",
                hint="start_attempt comes first",
            ) from error

    def _check_parent(self, attempt: int, step: int, parent: str | None) -> None:
        start = self._pin(attempt).manifest
        key = parse_name(parent) if parent is not None else None
        if parent != start and not (key is not None and key[0] == attempt and key[1] < step):
            raise SpecError(
                f"job {self._job}: {manifest_name(attempt, step)} cannot continue {parent}: attempt {attempt} started "
                f"from {start}",
                hint="the parent is the attempt's previous manifest, or the one it started from",
            )

    def _own_commit(self, manifest: Manifest, error: AlreadyExistsError) -> Manifest:
        """The commit that is there already, if an earlier try of ours made it; else AlreadyExistsError with who did."""
        there = self.load(manifest.name)
        if there.nonce == manifest.nonce and there.files == manifest.files:
            return there
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(there.created_at))
        raise AlreadyExistsError(
            f"job {self._job}: {manifest.name} was committed by another writer (nonce {there.nonce}) at {when}",
            hint="two processes run as the same attempt: end one of them",
        ) from error

    def _fenced(self, attempt: int, newest: int) -> FencedError:
        return FencedError(
            f"job {self._job}: attempt {attempt} must not write, attempt {newest} is pinned in {self._store.uri}",
            hint="a newer attempt goes on in its place; do not run this one again",
        )
