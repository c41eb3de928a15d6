"""The reading half of a checkpoint chain: what there is, which of it is alive, whether it is whole. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.storage.base import ObjectStore
from cluster.storage.chain.content import checked_bytes, verified_download, verify_blob
from cluster.storage.chain.records import Pin, Quarantined, read_manifest
from cluster.storage.chain.survey import Survey, read_manifests, survey_store
from jobs.errors import CorruptCheckpoint, IntegrityError, ObjectNotFound
from jobs.manifest import Manifest, parse_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A manifest in the store: on the live chain or a dead branch; `problem` if it cannot be read.

    `retired` if a collector has deleted its state: it is part of the run's record, and cannot be resumed.
    """

    name: str
    live: bool
    retired: bool
    manifest: Manifest | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpan:
    """When an attempt was pinned and when it committed last (None: never), by its writers' clocks: for estimates."""

    attempt: int
    started_at: float
    last_commit_at: float | None


class CheckpointReader:
    """The checkpoints of `job` in `store`.

    Its methods raise CorruptCheckpoint for definite damage, UnknownManifest for a newer version, and StoreUnavailable
    for not knowing.
    """

    def __init__(self, store: ObjectStore, job: str) -> None:
        self._store = store
        self._job = job
        self._pins: dict[int, Pin] = {}  # pins never change: read once

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
        alive = set(survey.live())
        gone = survey.gone(self._store, survey.names)
        read = read_manifests(self._store, survey.names)
        found = []
        for name in sorted(survey.names, reverse=True):
            one = read[name]
            manifest, problem = (one, "") if isinstance(one, Manifest) else (None, str(one))
            found.append(
                Listed(name=name, live=name in alive, retired=name in gone, manifest=manifest, problem=problem)
            )
        return found

    def newest(self) -> Manifest | None:
        """The newest live manifest that verifies, None if there is none. Nothing is quarantined: a start does that."""
        while True:
            survey = survey_store(self._store, self._pins)
            manifest, damaged = self._walk_back(survey, survey.live())
            if (manifest is not None and not damaged) or self._is_still(survey):
                return manifest

    def attempts(self) -> list[AttemptSpan]:
        """All attempts, oldest first."""
        survey = survey_store(self._store, self._pins)
        last: dict[int, str] = {}
        for name in sorted(survey.names):
            key = parse_name(name)
            if key is not None:
                last[key[0]] = name
        read = read_manifests(self._store, last.values())
        spans = []
        for attempt, pin in sorted(survey.pins.items()):
            one = read.get(last.get(attempt, ""))
            at = one.created_at if isinstance(one, Manifest) else None
            spans.append(AttemptSpan(attempt=attempt, started_at=pin.created_at, last_commit_at=at))
        return spans

    def _walk_back(self, survey: Survey, candidates: list[str]) -> tuple[Manifest | None, list[Quarantined]]:
        """The first of `candidates` that verifies, and those before it that are damaged. Retired ones are passed by."""
        damaged: list[Quarantined] = []
        for name in candidates:
            if survey.retirements.went(self._store, name):
                continue
            try:
                return self._verified(name), damaged
            except CorruptCheckpoint as error:
                damaged.append(Quarantined(manifest=name, reason=str(error)))
        return None, damaged

    def _is_still(self, survey: Survey) -> bool:
        """Whether all is as it was: if not, what seemed damaged may be what a collection deletes, for a newer one."""
        return survey.shows_the_same_as(survey_store(self._store, self._pins))

    def _verified(self, name: str) -> Manifest:
        """The manifest of that name if it and all its files are right, else CorruptCheckpoint."""
        try:
            manifest = self.load(name)
        except ObjectNotFound as error:
            raise CorruptCheckpoint(f"manifest {name} is missing: the store has no such object") from error
        self.verify(manifest)
        return manifest
