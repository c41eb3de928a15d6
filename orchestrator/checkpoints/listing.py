"""The checkpoints of one chain, for people: which there are, in what state, and which one is meant.

Manifests are read and files are not: `orchestrator.checkpoints.verdicts` does that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.storage import ObjectStore
from cluster.storage.chain.reader import Listed
from cluster.storage.chain.records import read_sealed
from cluster.storage.chain.survey import read_each, survey_store
from jobs.errors import CorruptCheckpoint, NotFoundError, SpecError
from jobs.manifest import FileEntry, Manifest, manifest_name, parse_name, parse_object
from orchestrator.checkpoints.chains import Chain

LIVE, DEAD, RETIRED, DAMAGED, QUARANTINED = "live", "dead branch", "retired", "damaged", "quarantined"
_NUM_SHOWN = 8
_MANIFEST = re.compile(r"(?:manifests/)?(\d{1,6})-(\d{1,9})(?:\.json)?", re.ASCII)
_QUARANTINE = re.compile(r"quarantine/(\d{6}-\d{9})\.(\d{6})\.json", re.ASCII)


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
        # What an attempt quarantined that never began is still alive, and is tried first.
        resumes = listed.live and state in (LIVE, QUARANTINED) and not any(one.resumes for one in found)
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
    if not found:
        raise NotFoundError(f"{chain.name} has no checkpoint", hint="it has to commit one first")
    if which is None:
        return _that_resumes(chain, found)
    match = _MANIFEST.fullmatch(which)
    if match is not None:
        step, wanted = int(match[2]), manifest_name(int(match[1]), int(match[2]))
        fitting = [one for one in found if one.name == wanted]
    elif which.isdecimal():
        step, wanted = int(which), f"checkpoint at step {int(which)}"
        fitting = [one for one in found if one.step == step]
    else:
        raise SpecError(
            f"{which!r} is neither a step nor a manifest", hint="say 120, or 000002-000000120 for attempt 2, step 120"
        )
    if not fitting:
        raise NotFoundError(f"{chain.name} has no {wanted}", hint=_near(found, step))
    return next((one for one in fitting if one.live), fitting[0])


def shared_with(entry: FileEntry, manifest: Manifest) -> str | None:
    """The manifest whose commit brought this file, None if it was the checkpoint's own."""
    parsed = parse_object(entry.key)
    if parsed is None or (parsed[0], parsed[1]) == (manifest.attempt, manifest.step):
        return None
    return manifest_name(parsed[0], parsed[1])


def _that_resumes(chain: Chain, found: list[Found]) -> Found:
    for one in found:
        if one.resumes:
            return one
    newest = found[0]
    seen = f"{newest.name} is {newest.state}" + f", {newest.reason}" * bool(newest.reason)
    raise NotFoundError(
        f"{chain.name} has no checkpoint that could be resumed: the newest, {seen}",
        hint="`rexctl checkpoints ls` lists them; name one",
    )


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
    named = [(pin.manifest, f"attempt {number}", number == survey.newest_begun) for number, pin in survey.pins.items()]
    named += [(one.manifest.parent, one.name, one.live) for one in listed if one.manifest is not None]
    if chain.row is not None and chain.row.checkpoint is not None:
        named.append((chain.row.checkpoint["manifest"], chain.name, True))
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
    keys = [info.key for info in store.list("quarantine/") if _QUARANTINE.fullmatch(info.key)]

    def reason(key: str) -> str:
        try:
            return str(read_sealed(store, key).get("reason", ""))
        except CorruptCheckpoint as error:  # a note for people: the checkpoint's own state is not touched by it
            return f"the record of why is damaged: {error}"

    found = {}
    for key, text in sorted(read_each(keys, reason).items()):
        match = _QUARANTINE.fullmatch(key)
        if match is not None:
            found[f"manifests/{match[1]}.json"] = f"attempt {int(match[2])} found: {text}"
    return found


def _near(found: list[Found], step: int) -> str:
    steps = sorted({one.step for one in found})
    if len(steps) <= _NUM_SHOWN:
        return f"valid steps: {', '.join(map(str, steps))}"
    nearest = sorted(sorted(steps, key=lambda other: abs(other - step))[:_NUM_SHOWN])
    return f"the nearest of {len(steps)} steps: {', '.join(map(str, nearest))}"
