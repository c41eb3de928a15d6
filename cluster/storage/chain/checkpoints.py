"""Starting, committing and collecting: the writing half of a job's chain of checkpoints over an object store.

Layout below the store's prefix, which belongs to one job:

    attempts/000002                          pin: attempt 2 has started, from this manifest or none; create-only
    manifests/000002-000000120.json          the commit of (attempt 2, step 120); create-only
    objects/000002-000000120/<sha256>        content that this commit brought; what it shares with its parent lies there
    quarantine/000001-000000100.000002.json  attempt 2 found that manifest damaged, and why
    retired/...                              whose state `cluster.storage.chain.gc` has deleted or is about to
    graphs/..., probe/..., doctor/...        no part of the chain: compiled graphs, and what is there for a moment

Files first, the manifest last: without a valid manifest there is no checkpoint. Which manifests are alive is decided
by `jobs.chain` from pins and names alone, with no clock. Damage must be definite (bytes were read, or the store said
that there is no such object) before anything is quarantined; StoreUnavailable passes through every method unchanged.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from cluster.storage.base import ObjectStore
from cluster.storage.chain.gc import Collected, Known, collect
from cluster.storage.chain.reader import CheckpointReader
from cluster.storage.chain.records import Pin, Quarantined, Start, read_pin, sealed_manifest, sealed_quarantine
from cluster.storage.chain.retired import PREFIX as RETIRED_PREFIX
from cluster.storage.chain.retired import Retirements
from cluster.storage.chain.survey import Survey, newest_attempt, survey_store
from cluster.storage.digests import digest_file
from jobs.chain import pin_name
from jobs.errors import (
    AlreadyExistsError,
    CorruptCheckpoint,
    FencedError,
    IntegrityError,
    ObjectNotFound,
    SpecError,
    StoreUnavailable,
)
from jobs.manifest import PREFIX, FileEntry, Manifest, manifest_name, object_key, parse_name
from jobs.retention import Retention

__all__ = ["CheckpointStore", "Quarantined", "Start"]


class CheckpointStore(CheckpointReader):
    """The checkpoints of `job` in `store`, for who writes them, too. One instance a writer: its nonce tells its own
    retries from other writers."""

    def __init__(self, store: ObjectStore, job: str) -> None:
        super().__init__(store, job)
        self._nonce = uuid.uuid4().hex
        self._latest: Manifest | None = None  # what our next commit will most likely continue
        self._doubtful: str | None = None  # a commit of ours of which nobody knows whether it stands
        self._known = Known()  # what `collect` has read

    def start_attempt(self, attempt: int | None, *, must_resume: str | None = None) -> Start:
        """Decide where an attempt starts, and pin it: from here on all older attempts are fenced off.

        Walks back from the newest live manifest to the first that verifies fully; what is damaged is quarantined.
        Repeating the call on the same instance, after StoreUnavailable say, gives the same start.

        Args:
            attempt: the number allotted to us; None allots the next free one (bare runs).
            must_resume: a manifest that this job is known to have committed. Without it an empty store is a new job's.

        Returns:
            the start; its manifest is None only if this job never had a live manifest, as far as the store and
            `must_resume` can tell.

        Raises:
            SpecError: None where only the job database may allot numbers (protocol "allotted"), or no such number.
            FencedError: the number is not above all pinned ones, or a newer attempt was pinned meanwhile.
            CorruptCheckpoint: there should be a checkpoint and none verifies; nothing is pinned.
            UnknownManifest: the newest live manifest is of a newer version; nothing is pinned or quarantined.
            StoreUnavailable: not knowing; nothing is pinned or quarantined on it. Or a collection was faster than our
                pin, which counts for nothing then: the next number starts from another checkpoint.
        """
        if attempt is not None and not 1 <= attempt <= 999_999:
            raise SpecError(f"job {self._job}: attempt {attempt} is not within 1 to 999999")
        if attempt is None and self._store.protocol == "allotted":
            raise SpecError(
                f"{self._store.uri} has no conditional put, so attempts cannot fence each other there",
                hint="submit the job with rexctl: its database allots the attempts; or use another store",
            )
        while True:
            survey = survey_store(self._store, self._pins)
            newest = survey.newest_attempt
            number = newest + 1 if attempt is None else attempt
            if number <= newest:
                ours = survey.pins.get(number)
                if number == newest and ours is not None and ours.nonce == self._nonce:
                    return self._begun(self.pinned(number))
                raise self._fenced(number, newest)
            self._check_place(survey, must_resume)
            candidates = survey.live(must_resume)
            manifest, damaged = self._walk_back(survey, candidates)
            if (manifest is None or damaged) and not self._is_still(survey):
                continue
            self._quarantine(damaged, number)
            if manifest is None:
                self._check_new(survey, [must_resume, *candidates], damaged)
            quarantined = tuple(damaged) if manifest is not None else ()
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
                return self._begun(self.pinned(number))
            newest = newest_attempt(self._store)
            if newest > number:
                raise self._fenced(number, newest)
            return self._begun(Start(attempt=number, manifest=manifest, quarantined=quarantined))

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
        history: Collection[str] = (),
    ) -> Manifest:
        """Make the checkpoint (attempt, step) of these files; durable on return. The files must not change meanwhile.

        `parent` is this attempt's previous manifest, or the one it started from (None: it started from nothing).
        `history` names the files that are part of the run's record: they outlive the state. Content that the parent
        has, too, is not sent again. One commit at a time, with growing steps: `collect` counts on it. Repeating a
        commit on the same instance, after StoreUnavailable say, is safe.

        Raises:
            FencedError: a newer attempt is pinned, or this one never was. A commit that slips through just before
                the newer pin is a dead branch by the liveness rule, unless that pin starts from it.
            AlreadyExistsError: another writer has committed (attempt, step); the message says who.
            SpecError: `parent` is not one that this attempt can have.
        """
        self._check_fence(attempt)
        self._check_parent(attempt, step, parent)
        name = manifest_name(attempt, step)
        # If a commit stands whose reply was lost, a collection may take what its parent alone has: so none of that.
        sure = self._doubtful in (None, name)
        known = {(entry.sha256, entry.size_bytes): entry.key for entry in self._parent_files(parent) if sure}
        entries = []
        for file, path in files.items():
            digests = digest_file(path)
            key = known.get((digests.sha256, digests.size_bytes))
            if key is None:
                key = object_key(attempt, step, digests.sha256)
                self._store.put_file(key, path, digests)
            entries.append(
                FileEntry(
                    name=file, size_bytes=digests.size_bytes, sha256=digests.sha256, key=key, history=file in history
                )
            )
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
        self._doubtful = self._doubtful or name
        try:
            self._store.create(name, sealed_manifest(manifest))
        except AlreadyExistsError as error:
            manifest = self._own_commit(manifest, error)
        self._latest, self._doubtful = manifest, None
        return manifest

    def collect(
        self,
        retention: Retention,
        *,
        dry_run: bool = False,
        go_on: Callable[[], None] = lambda: None,
    ) -> Collected:
        """Delete what `retention` lets go and what nobody needs: see `cluster.storage.chain.gc.collect`.

        One at a time, beside commits and whatever else.
        """
        return collect(self._store, self._job, retention, dry_run=dry_run, go_on=go_on, known=self._known)

    def _check_new(self, survey: Survey, expected: list[str | None], damaged: list[Quarantined]) -> None:
        """CorruptCheckpoint unless this is a job that has never committed."""
        expected += [pin.manifest for pin in survey.pins.values()]
        committed = next((name for name in expected if name is not None), None)
        if committed is None:
            return
        seen = "; ".join(item.reason for item in damaged) or f"the store lists {len(survey.names)}, none to resume"
        raise CorruptCheckpoint(
            f"job {self._job} has committed {committed} and no checkpoint in {self._store.uri} verifies: {seen}",
            hint="it is not started from zero by itself: check the store's URI and mount, restore the objects, "
            "or submit the job anew",
        )

    def _check_place(self, survey: Survey, must_resume: str | None) -> None:
        """StoreUnavailable if this cannot be where `must_resume` was committed. Pins are never deleted."""
        key = parse_name(must_resume) if must_resume is not None else None
        if key is not None and key[0] not in survey.pins:
            raise StoreUnavailable(  # an unmounted share is an empty folder, another endpoint has an empty bucket
                f"{self._store.uri} has no attempt {key[0]}, and job {self._job} has committed its {must_resume} there",
                hint="is its disk or share mounted, is AWS_ENDPOINT_URL the right one? Nothing was concluded from this",
            )

    def _begun(self, start: Start) -> Start:
        """Now that our pin names its manifest: whoever wants to delete that one's state has to let it be."""
        if start.manifest is not None:
            base = start.manifest.name.removeprefix(PREFIX).removesuffix(".json")
            listed = self._store.list(f"{RETIRED_PREFIX}{base}.")
            Retirements(info.key for info in listed).keep(self._store, start.manifest.name, self._nonce)
        self._latest = start.manifest
        return start

    def _parent_files(self, parent: str | None) -> tuple[FileEntry, ...]:
        """What a commit may share with its parent; nothing if that cannot be read."""
        if parent is None:
            return ()
        if self._latest is None or self._latest.name != parent:
            try:
                self._latest = self.load(parent)
            except (ObjectNotFound, IntegrityError):
                return ()
        return self._latest.files

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

    def _check_fence(self, attempt: int) -> None:
        newest = newest_attempt(self._store)
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
