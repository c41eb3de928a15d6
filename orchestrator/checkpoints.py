"""The checkpoints of one chain, for people: which there are, in what state, and whether they are whole.

Reads alone; what is deleted is `cluster.storage.gc`'s to decide. A chain is named by its job or by its store's URI.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.storage import ObjectStore, open_store
from cluster.storage.checkpoints import CheckpointStore, Listed
from cluster.storage.content import verified_download
from cluster.storage.records import read_sealed
from cluster.storage.survey import read_each, survey_store
from jobs.errors import ConflictError, CorruptCheckpoint, NotFoundError, SpecError
from jobs.manifest import FileEntry, Manifest, manifest_name, parse_name, parse_object
from orchestrator.folders import growing
from orchestrator.store import JobRow, Store

LIVE, DEAD, RETIRED, DAMAGED, QUARANTINED = "live", "dead branch", "retired", "damaged", "quarantined"
_NUM_SHOWN = 8
_MANIFEST = re.compile(r"^(?:manifests/)?(\d{1,6})-(\d{1,9})(?:\.json)?$")
_QUARANTINE = re.compile(r"^quarantine/(\d{6}-\d{9})\.(\d{6})\.json$")

OnBytes = Callable[[int], None]  # told how many bytes have come, from 0 to the total


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Where a job's checkpoints lie. `row` is the job's, None if the chain was named by its URI."""

    job: str
    store: ObjectStore
    row: JobRow | None
    checkpoints: CheckpointStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A checkpoint in the store. `manifest` is None if it cannot be read; `reason` says what is wrong, if something is.

    `resumes` marks the one that the next attempt begins with, should its files verify.
    """

    name: str
    attempt: int
    step: int
    state: str
    live: bool
    manifest: Manifest | None
    reason: str
    resumes: bool

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """What should be there of it: of a retired one the run's record alone."""
        entries = self.manifest.files if self.manifest else ()
        return tuple(entry for entry in entries if entry.history or self.state != RETIRED)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)

    def readable(self) -> Manifest:
        """The manifest; CorruptCheckpoint if there is none to read."""
        if self.manifest is None:
            raise CorruptCheckpoint(self.reason)
        return self.manifest

    def whole(self) -> Manifest:
        """The manifest of a checkpoint that has its state; NotFoundError of a retired one."""
        if self.state == RETIRED:
            raise NotFoundError(
                f"the state of {self.name} is retired: a collection has deleted it",
                hint="`rexctl checkpoints ls` says which checkpoints have theirs",
            )
        return self.readable()


def find_chain(name: str, jobs: Callable[[], Store]) -> Chain:
    """The chain of that job, or in the store of that URI; `jobs` opens the job store, if that is needed.

    Raises:
        NotFoundError: there is no such job, or no chain under the URI.
        SpecError: neither a job's id nor a store's URI.
    """
    if "://" not in name:
        if "/" in name:
            raise SpecError(
                f"{name!r} is neither a job's id nor a store's URI",
                hint=f"a folder is said as file://{Path(name).absolute()}",
            )
        row = jobs().get(name)
        store = open_store(row.store_uri)
        return Chain(job=row.id, store=store, row=row, checkpoints=CheckpointStore(store, row.id))
    store = open_store(name)
    nobody = CheckpointStore(store, "")
    listed = nobody.manifests()
    if not listed and not nobody.attempts():
        raise NotFoundError(
            f"there is no chain of checkpoints in {store.uri}",
            hint="each job has a store of its own: `rexctl status JOB` prints its URI",
        )
    job = next((one.manifest.job for one in listed if one.manifest is not None), "")
    return Chain(job=job, store=store, row=None, checkpoints=CheckpointStore(store, job))


def find_checkpoints(chain: Chain) -> list[Found]:
    """All checkpoints, newest (attempt, step) first. Their files are not looked at.

    A manifest that is not there is among them if a pin, a child or the job's row names it.
    """
    reasons = _quarantined(chain.store)
    all_listed = chain.checkpoints.manifests()
    all_listed += _missing(chain, all_listed)
    found: list[Found] = []
    for listed in sorted(all_listed, key=lambda one: one.name, reverse=True):
        key = parse_name(listed.name)
        if key is None:
            continue  # nobody names anything else
        state, reason = _state(listed, reasons.get(listed.name, ""))
        resumes = state == LIVE and not any(one.resumes for one in found)
        found.append(
            Found(
                name=listed.name, attempt=key[0], step=key[1], state=state, live=listed.live,
                manifest=listed.manifest, reason=reason, resumes=resumes,
            )
        )  # fmt: skip
    return found


def choose(chain: Chain, found: list[Found], which: str | None) -> Found:
    """The checkpoint of that step or manifest; None for the newest live one that has its state.

    A step that the live chain and a dead branch share means the live chain's.

    Raises:
        NotFoundError: there is none; the hint names the nearest steps.
        SpecError: neither a step nor a manifest.
    """
    where = f"job {chain.job}" if chain.job else chain.store.uri
    if not found:
        raise NotFoundError(f"{where} has no checkpoint", hint="it has to commit one first")
    if which is None:
        for one in found:
            if one.resumes:
                return one
        newest = found[0]
        seen = f"{newest.name} is {newest.state}" + f", {newest.reason}" * bool(newest.reason)
        raise NotFoundError(
            f"{where} has no checkpoint that could be resumed: the newest, {seen}",
            hint="`rexctl checkpoints ls` lists them; name one",
        )
    if which.isdecimal():
        step = int(which)
        at_step = [one for one in found if one.step == step]
        if at_step:
            return next((one for one in at_step if one.live), at_step[0])
        raise NotFoundError(f"{where} has no checkpoint at step {step}", hint=_near(found, step))
    match = _MANIFEST.match(which)
    if match is None:
        raise SpecError(
            f"{which!r} is neither a step nor a manifest", hint="say 120, or 000002-000000120 for attempt 2, step 120"
        )
    name = manifest_name(int(match[1]), int(match[2]))
    for one in found:
        if one.name == name:
            return one
    raise NotFoundError(f"{where} has no {name}", hint=_near(found, int(match[2])))


@dataclass(slots=True)
class Verifier:
    """Reads checkpoints back and hashes them; an object that several of them name is read once, if it is whole."""

    chain: Chain
    num_bytes: int = 0  # read so far
    _whole: set[tuple[str, int]] = field(default_factory=set)

    def problems(self, one: Found, on_bytes: OnBytes) -> list[str]:
        """What is wrong with it, one sentence each; nothing if it is whole. StoreUnavailable for not knowing."""
        if one.manifest is None:
            return [one.reason]
        found = []
        if one.manifest.job != self.chain.job:
            found.append(f"manifest {one.name} belongs to job {one.manifest.job}, not to {self.chain.job}")
        for entry in one.files:
            if (entry.key, entry.size_bytes) in self._whole:
                continue
            try:
                self._read(entry, one.name, on_bytes)
            except CorruptCheckpoint as error:
                found.append(str(error))
            else:
                self._whole.add((entry.key, entry.size_bytes))
        return found

    def now(self, one: Found) -> Found:
        """The checkpoint in its state of now: a collection may have retired it since it was listed."""
        retired = any(now.retired for now in self.chain.checkpoints.manifests() if now.name == one.name)
        return replace(one, state=RETIRED) if retired else one

    def size_bytes(self, found: list[Found]) -> int:
        """What is to be read for all of them."""
        return sum(size for _, size in {(entry.key, entry.size_bytes) for one in found for entry in one.files})

    def _read(self, entry: FileEntry, manifest: str, on_bytes: OnBytes) -> None:
        before = self.num_bytes
        with tempfile.TemporaryDirectory(prefix="rex-verify-") as folder:
            target = Path(folder) / "blob"
            with growing(target, lambda now: on_bytes(before + min(now, entry.size_bytes))):
                verified_download(self.chain.store, entry, target, manifest)
        self.num_bytes += entry.size_bytes
        on_bytes(self.num_bytes)


def shared_with(entry: FileEntry, manifest: Manifest) -> str | None:
    """The manifest whose commit brought this file, None if it was the checkpoint's own."""
    parsed = parse_object(entry.key)
    if parsed is None or (parsed[0], parsed[1]) == (manifest.attempt, manifest.step):
        return None
    return manifest_name(parsed[0], parsed[1])


def is_alone(there: Chain, *, dry_run: bool) -> bool:
    """Whether no attempt runs during a collection, where that has to be known: on a store that cannot fence attempts.

    ConflictError if one may run and something would be deleted.
    """
    if there.store.protocol != "allotted":
        return False
    if dry_run:
        return True  # it deletes nothing
    if there.row is None:
        raise ConflictError(
            f"{there.store.uri} has no conditional put, and whether an attempt runs there is not known",
            hint="name the job instead of the URI",
        )
    if there.row.state.active:
        raise ConflictError(
            f"job {there.job} is {there.row.state.value}, and its store has no conditional put",
            hint="collect when it does not run",
        )
    return True


def as_json(one: Found) -> dict[str, Any]:
    """A row of `ls --json`."""
    manifest = one.manifest
    return {
        "manifest": one.name, "attempt": one.attempt, "step": one.step, "state": one.state, "live": one.live,
        "resumes": one.resumes, "reason": one.reason, "size_bytes": one.size_bytes,
        "epoch": manifest.epoch if manifest else None,
        "samples": manifest.samples if manifest else None,
        "parent": manifest.parent if manifest else None,
        "metrics": manifest.metrics if manifest else {},
        "created_at": manifest.created_at if manifest else None,
        "sha256": manifest.sha256() if manifest else None,
    }  # fmt: skip


def _state(listed: Listed, quarantined: str) -> tuple[str, str]:
    """(state, reason): what cannot be read comes first, then what cannot be resumed."""
    if listed.manifest is None:
        return DAMAGED, listed.problem
    if listed.retired:
        return RETIRED, ""
    if quarantined:
        return QUARANTINED, quarantined
    return (LIVE if listed.live else DEAD), ""


def _missing(chain: Chain, listed: list[Listed]) -> list[Listed]:
    """Manifests that somebody names and the store does not list; live if who names them is."""
    survey = survey_store(chain.store, {})
    named = [
        (pin.manifest, f"attempt {number}", number == survey.newest_attempt) for number, pin in survey.pins.items()
    ]
    named += [(one.manifest.parent, one.name, one.live) for one in listed if one.manifest is not None]
    if chain.row is not None and chain.row.checkpoint is not None:
        named.append((chain.row.checkpoint["manifest"], f"job {chain.job}", True))
    there = survey.names | {one.name for one in listed}  # what was committed meanwhile is not missing
    found: dict[str, Listed] = {}
    for name, by, live in named:
        if name is None or name in there or (name in found and found[name].live >= live):
            continue
        problem = f"manifest {name} is missing: {by} names it and the store has no such object"
        found[name] = Listed(name=name, live=live, retired=False, manifest=None, problem=problem)
    return list(found.values())


def _quarantined(store: ObjectStore) -> dict[str, str]:
    """Manifests that attempts have found damaged, with the newest record's reason."""
    keys = [info.key for info in store.list("quarantine/") if _QUARANTINE.match(info.key)]

    def reason(key: str) -> str:
        try:
            return str(read_sealed(store, key).get("reason", ""))
        except CorruptCheckpoint as error:  # a note for people: the checkpoint's own state is not touched by it
            return f"the record of why is damaged: {error}"

    found = {}
    for key, text in sorted(read_each(keys, reason).items()):
        match = _QUARANTINE.match(key)
        if match is not None:
            found[f"manifests/{match[1]}.json"] = f"attempt {int(match[2])} found: {text}"
    return found


def _near(found: list[Found], step: int) -> str:
    steps = sorted({one.step for one in found})
    if len(steps) <= _NUM_SHOWN:
        return f"valid steps: {', '.join(map(str, steps))}"
    nearest = sorted(sorted(steps, key=lambda other: abs(other - step))[:_NUM_SHOWN])
    return f"the nearest of {len(steps)} steps: {', '.join(map(str, nearest))}"
