"""One look at a chain: every pin, and the names of manifests and retirements. Manifests are read where they count."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from cluster.storage.base import ObjectStore
from cluster.storage.chain.lineage import parents_of
from cluster.storage.chain.records import Pin, read_manifest, read_pin
from cluster.storage.chain.retired import PREFIX as RETIRED_PREFIX
from cluster.storage.chain.retired import Retirements
from jobs.chain import PIN_PREFIX, live, parse_pin_name, pin_name
from jobs.errors import CorruptCheckpoint, ObjectNotFound
from jobs.manifest import PREFIX, Manifest, parse_name

_NUM_READERS = 8  # a listing of hundreds costs one round trip each; the store sees no more than a browser would ask

_T = TypeVar("_T")
_K = TypeVar("_K")


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is there. `given_up` are the attempts whose start never began: see `cluster.storage.chain.retired`."""

    pins: dict[int, Pin]
    given_up: frozenset[int]
    names: frozenset[str]
    retirements: Retirements

    @property
    def newest_attempt(self) -> int:
        return max(self.pins, default=0)

    @property
    def newest_begun(self) -> int:
        """The newest attempt that is known to have begun, or may have."""
        return max(self._begun(), default=0)

    @property
    def newest_start(self) -> str | None:
        """The manifest that this one started from."""
        return self._begun().get(self.newest_begun)

    def live(self, also: str | None = None) -> list[str]:
        """Live manifests, newest first: those listed, and those that must be there: `also`, and the newest start."""
        pins = self._begun()
        wanted = self.names | {name for name in (also, self.newest_start) if name is not None}
        return [name for name in live(parents_of(wanted, pins), pins) if name in wanted]

    def shows_the_same_as(self, other: Survey) -> bool:
        """Whether nothing was pinned, committed, or begun or decided to be retired between the two."""
        return (self.pins.keys(), self.names, self.retirements.keys) == (
            other.pins.keys(), other.names, other.retirements.keys
        )  # fmt: skip

    def gone(self, store: ObjectStore, names: Iterable[str], go_on: Callable[[], None] = lambda: None) -> set[str]:
        """Those of `names` whose state a collection has deleted, or is about to. `go_on` as `read_each` has it."""
        asked = set(names) & self.retirements.names()
        went = read_each(asked, lambda name: self.retirements.went(store, name), go_on)
        return {name for name in asked if went[name]}

    def _begun(self) -> dict[int, str | None]:
        return {attempt: pin.manifest for attempt, pin in self.pins.items() if attempt not in self.given_up}


def survey_store(
    store: ObjectStore, known_pins: dict[int, Pin], known_decisions: dict[str, bool] | None = None
) -> Survey:
    """Read all pins (but those known: they never change) and whether they count, and list the rest.

    Pins are listed first: a manifest committed after that under an older attempt is judged by what was pinned.

    Raises:
        CorruptCheckpoint: a pin is damaged, or missing although its attempt has committed: what is alive cannot be
            told, so nothing may be concluded.
        StoreUnavailable: not everything could be read.
    """
    attempts = [number for info in store.list(PIN_PREFIX) if (number := parse_pin_name(info.key)) is not None]

    def pin(attempt: int) -> Pin:
        return known_pins.get(attempt) or read_pin(store, attempt)

    pins = read_each(attempts, pin)
    keys = {info.key: key for info in store.list(PREFIX) if (key := parse_name(info.key)) is not None}
    unlisted = {attempt for attempt, _ in keys.values()} - pins.keys()
    pins |= read_each(unlisted, lambda attempt: _late_pin(store, attempt))
    known_pins.update(pins)
    retirements = Retirements((info.key for info in store.list(RETIRED_PREFIX)), known_decisions)

    def gave_up(attempt: int) -> bool:
        manifest = pins[attempt].manifest
        return manifest is not None and retirements.went(store, manifest, before=attempt)

    given_up = frozenset(attempt for attempt, gone in read_each(pins, gave_up).items() if gone)
    return Survey(pins=pins, given_up=given_up, names=frozenset(keys), retirements=retirements)


def _late_pin(store: ObjectStore, attempt: int) -> Pin:
    """The pin of an attempt that has committed; it was not listed, so it was written since, or it is lost."""
    try:
        return read_pin(store, attempt)
    except ObjectNotFound as error:
        raise CorruptCheckpoint(
            f"{pin_name(attempt)} is missing: attempt {attempt} has committed and the store has no such object"
        ) from error


def newest_attempt(store: ObjectStore) -> int:
    """The number of the newest attempt that is pinned, 0 if none is."""
    return max((parse_pin_name(info.key) or 0 for info in store.list(PIN_PREFIX)), default=0)


def read_manifests(
    store: ObjectStore, names: Iterable[str], go_on: Callable[[], None] = lambda: None
) -> dict[str, Manifest | CorruptCheckpoint]:
    """Each of them, or how it is damaged; UnknownManifest if one is of a newer version. `go_on`: as in `read_each`."""

    def read(name: str) -> Manifest | CorruptCheckpoint:
        try:
            return read_manifest(store, name)
        except ObjectNotFound:
            return CorruptCheckpoint(f"manifest {name} is missing: the store has no such object")
        except CorruptCheckpoint as reason:
            return reason

    return read_each(names, read, go_on)


def read_each(keys: Iterable[_K], read: Callable[[_K], _T], go_on: Callable[[], None] = lambda: None) -> dict[_K, _T]:
    """`read` of every key, a few at a time; the first error is raised. `go_on` comes before each: it may raise one."""

    def one(key: _K) -> _T:
        go_on()
        return read(key)

    todo = list(keys)
    if len(todo) < 2:
        return {key: one(key) for key in todo}
    with ThreadPoolExecutor(max_workers=min(_NUM_READERS, len(todo)), thread_name_prefix="rex-survey") as pool:
        return dict(zip(todo, pool.map(one, todo), strict=True))
