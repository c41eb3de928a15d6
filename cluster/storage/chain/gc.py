"""Collecting garbage of a chain: the state of checkpoints that retention lets go, and what dead writers left behind.

Never touched: manifests, pins, shipped logs, and files that belong to the run's record. Deleted is
- the state of manifests that the policy does not keep and of dead branches, once their retirement is decided
  (`cluster.storage.chain.retired`); what a manifest that stays shares with them stays;
- an object that no manifest names, and an unfinished upload, if no commit can still be about to name it: its attempt is
  not the newest, or has committed that step or a later one, or is known to have ended;
- what a killed probe or doctor left (`cluster.storage.scratch`), and unfinished writes of compiled graphs and of
  decisions, whose keys do not tell who writes them, once the newest attempt is known to have ended.

No clock is consulted. Compiled graphs themselves stay: they are named by what they are.

Safe to be killed at any point, to run twice at once, and beside training, starts and commits. Nothing is deleted unless
a checkpoint of the live chain has been read back whole, and that one is kept whatever the policy says.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.storage.base import Leftover, ObjectInfo, ObjectStore
from cluster.storage.chain.content import verify_blob
from cluster.storage.chain.records import Pin
from cluster.storage.chain.retired import decide_to_delete, intend
from cluster.storage.chain.survey import Survey, newest_attempt, read_manifests, survey_store
from cluster.storage.scratch import is_scratch, list_scratch, remove_folders
from jobs.errors import CorruptCheckpoint, SpecError
from jobs.manifest import OBJECT_PREFIX, Manifest, parse_name, parse_object
from jobs.retention import Retention

_OF_ATTEMPT = re.compile(
    r"(?:attempts|manifests|quarantine|retired)/(?:.*\.)?(\d{6})(?:-\d{9}\.json|\.json)?", re.ASCII
)
_OF_LOGS = re.compile(r"logs/attempt-(\d+)/.*", re.ASCII)


@dataclass(slots=True, kw_only=True)
class Known:
    """What a collection has read of the chain and the next one need not: none of it ever changes."""

    pins: dict[int, Pin] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    decisions: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did, or with `dry_run` would do.

    `kept` are manifests with the reason; `retired` those that lost their state now; `unsettled` is the number of
    objects and uploads that nothing names yet and that a commit may still be about to name.
    """

    kept: dict[str, str]
    retired: tuple[str, ...]
    objects: tuple[ObjectInfo, ...]
    leftovers: tuple[Leftover, ...]
    unsettled: int
    note: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(info.size_bytes for info in self.objects)


def collect(
    store: ObjectStore,
    job: str,
    retention: Retention,
    *,
    dry_run: bool = False,
    alone: bool = False,
    ended: int = 0,
    on_delete: Callable[[int, int], None] = lambda done, total: None,
    go_on: Callable[[], None] = lambda: None,
    known: Known | None = None,
) -> Collected:
    """Delete what `retention` lets go and what nobody needs.

    Args:
        alone: no attempt of the job can run or start meanwhile; required where creations are not atomic.
        ended: attempts up to this number are over for good, as the job store knows: their nodes have certified it. If
            the last request of such an attempt is still on its way, the checkpoint that it would make, of which nobody
            was told, may lack its content: a start passes it by.
        on_delete: called before each deletion with its number and how many there are.
        go_on: called before each object that is read (but pins), written or deleted, by several threads; what it raises
            ends the work.
        known: what was read before; what is read now is added.

    Raises:
        SpecError: a store without conditional put, and not `alone`.
        CorruptCheckpoint: a pin is damaged, or no live checkpoint verifies: nothing is deleted.
        UnknownManifest: something here is of a newer version: nothing is deleted.
        StoreUnavailable: not everything could be read, or not everything deleted; repeat it.
    """
    if store.protocol == "allotted" and not alone:
        raise SpecError(
            f"{store.uri} has no conditional put: a collection there must not meet a running attempt",
            hint="collect when the job does not run",
        )
    # All that may go is listed before pins and manifests: what is named later was not there yet, or is not settled.
    # And uploads before objects: a room's mark is there as long as an upload into it is.
    leftovers = store.leftovers("")
    scratch = list_scratch(store)
    objects = store.list(OBJECT_PREFIX)
    known = known or Known()
    survey = survey_store(store, known.pins, known.decisions)
    read = read_manifests(store, survey.names - known.manifests.keys(), go_on)
    known.manifests.update((name, one) for name, one in read.items() if isinstance(one, Manifest))
    manifests = {name: known.manifests[name] for name in survey.names if name in known.manifests}
    kept = _kept(store, job, retention, survey, manifests, go_on=go_on)
    stateful = {info.key for info in objects}
    doomed = [
        name
        for name, manifest in sorted(manifests.items())
        if name not in kept and any(not f.history and f.key in stateful for f in manifest.files)
    ]
    retired, note = doomed, ""
    if not dry_run:
        retired, note = _retire(store, survey.newest_attempt, doomed, go_on)
    named = {
        entry.key for name, one in manifests.items() for entry in one.files if name not in retired or entry.history
    }
    settled = _Settled(survey, ended)
    loose = [info for info in objects if info.key not in named and not settled.is_of_damaged(info.key, manifests)]
    garbage = [*scratch, *(info for info in loose if settled(info.key))]
    abandoned = [left for left in leftovers if settled(left.key)]
    if not dry_run:
        _delete(store, garbage, abandoned, on_delete, go_on)
    return Collected(
        kept=kept,
        retired=tuple(retired),
        objects=tuple(garbage),
        leftovers=tuple(abandoned),
        unsettled=len(scratch) + len(loose) - len(garbage) + len(leftovers) - len(abandoned),
        note=note,
    )


def _kept(
    store: ObjectStore, job: str, retention: Retention, survey: Survey, manifests: dict[str, Manifest], *,
    go_on: Callable[[], None],
) -> dict[str, str]:  # fmt: skip
    """What stays: the policy's, what the newest attempt resumed from, and the newest that verifies."""
    alive = survey.live()
    gone = survey.gone(store, alive, go_on)
    # What is gone takes no place in the policy: one that has become more generous brings nothing back.
    live = [manifests[name] for name in alive if name in manifests and name not in gone]
    kept = retention.keeps(live)
    if survey.newest_start in manifests:
        kept[str(survey.newest_start)] = f"attempt {survey.newest_begun} started from it"
    for manifest in live:
        try:
            if manifest.job != job:
                raise CorruptCheckpoint(f"manifest {manifest.name} belongs to job {manifest.job}, not to {job}")
            for entry in manifest.files:
                go_on()
                verify_blob(store, entry, manifest.name)
        except CorruptCheckpoint:
            continue  # whoever starts an attempt quarantines it; here it only means to look further
        kept[manifest.name] = "the newest that verifies"
        return kept
    if alive:
        raise CorruptCheckpoint(
            f"job {job}: none of {len(alive)} live checkpoints in {store.uri} verifies, so nothing is deleted",
            hint="look at them with `rexctl checkpoints ls` and `verify`",
        )
    return kept


def _retire(store: ObjectStore, attempt: int, doomed: list[str], go_on: Callable[[], None]) -> tuple[list[str], str]:
    """Those of `doomed` whose state may be deleted: intents first, then a look at the pins, then decisions."""
    nonce = uuid.uuid4().hex
    intents = {}
    for name in doomed:
        go_on()
        intents[name] = intend(store, name, attempt, nonce)
    newest = newest_attempt(store)
    if newest != attempt:
        return [], f"attempt {newest} started meanwhile; nothing was retired, collect again"
    retired = []
    for name, intent in intents.items():
        go_on()
        if decide_to_delete(store, intent, nonce):
            retired.append(name)
    return retired, ""


def _delete(
    store: ObjectStore,
    garbage: Sequence[ObjectInfo],
    abandoned: Sequence[Leftover],
    on_delete: Callable[[int, int], None],
    go_on: Callable[[], None],
) -> None:
    total = len(garbage) + len(abandoned)
    for done, info in enumerate(garbage, 1):
        go_on()
        on_delete(done, total)
        store.delete(info.key)
    for done, left in enumerate(abandoned, len(garbage) + 1):
        go_on()
        on_delete(done, total)
        store.discard(left)
    remove_folders(store, [info.key for info in garbage])


class _Settled:
    """Tells whether the commit that would name a key is over or can never come."""

    def __init__(self, survey: Survey, ended: int) -> None:
        self._newest = survey.newest_attempt
        self._ended = ended
        self._listed = {key for name in survey.names if (key := parse_name(name)) is not None}
        self._steps = max((step for attempt, step in self._listed if attempt == self._newest), default=-1)

    def __call__(self, key: str) -> bool:
        parsed, other = parse_object(key), _OF_ATTEMPT.fullmatch(key) or _OF_LOGS.fullmatch(key)
        if parsed is not None:
            attempt, over = parsed[0], parsed[0] == self._newest and parsed[1] <= self._steps
        elif other is not None:
            attempt, over = int(other[1]), False
        else:
            # Graphs and decisions are written by some attempt; if the newest has ended, whoever has begun is no more.
            return is_scratch(key) or 1 <= self._newest <= self._ended
        return over or attempt < self._newest or attempt <= self._ended

    def is_of_damaged(self, key: str, readable: dict[str, Manifest]) -> bool:
        """Whether its own manifest is there and cannot be read: what lies beside it may be what a person needs."""
        parsed = parse_object(key)
        if parsed is None or (parsed[0], parsed[1]) not in self._listed:
            return False
        return all(parse_name(name) != (parsed[0], parsed[1]) for name in readable)
