"""One look at a chain: every pin, and the names of manifests and retirements. Manifests are read where they count."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from cluster.storage.base import ObjectStore
from cluster.storage.lineage import parents_of
from cluster.storage.records import Pin, read_manifest, read_pin
from cluster.storage.retired import PREFIX as RETIRED_PREFIX
from cluster.storage.retired import Retirements
from jobs.chain import PIN_PREFIX, live, parse_pin_name
from jobs.errors import CorruptCheckpoint, ObjectNotFound
from jobs.manifest import PREFIX, Manifest, parse_name

_NUM_READERS = 8  # a listing of hundreds costs one round trip each; the store sees no more than a browser would ask

_T = TypeVar("_T")
_K = TypeVar("_K")


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is there."""

    pins: dict[int, Pin]
    names: frozenset[str]
    retirements: Retirements

    @property
    def newest_attempt(self) -> int:
        return max(self.pins, default=0)

    @property
    def newest_start(self) -> str | None:
        """The manifest that the newest attempt started from."""
        return self.pins[self.newest_attempt].manifest if self.pins else None

    def live(self, also: str | None = None) -> list[str]:
        """Live manifests, newest first: those listed, and those that must be there: `also`, and the newest start."""
        pins = {attempt: pin.manifest for attempt, pin in self.pins.items()}
        wanted = self.names | {name for name in (also, self.newest_start) if name is not None}
        return [name for name in live(parents_of(wanted, pins), pins) if name in wanted]


def survey_store(store: ObjectStore, known_pins: dict[int, Pin]) -> Survey:
    """Read all pins (but those known: they never change) and list the rest.

    Pins are listed first: a manifest committed after that under an older attempt is judged by what was pinned.

    Raises:
        CorruptCheckpoint: a pin is damaged: what is alive cannot be told, so nothing may be concluded.
        StoreUnavailable: not everything could be read.
    """
    attempts = [number for info in store.list(PIN_PREFIX) if (number := parse_pin_name(info.key)) is not None]

    def pin(attempt: int) -> Pin:
        return known_pins.get(attempt) or read_pin(store, attempt)

    pins = read_each(attempts, pin)
    known_pins.update(pins)
    names = frozenset(info.key for info in store.list(PREFIX) if parse_name(info.key) is not None)
    retirements = Retirements(info.key for info in store.list(RETIRED_PREFIX))
    return Survey(pins=pins, names=names, retirements=retirements)


def newest_attempt(store: ObjectStore) -> int:
    """The number of the newest attempt that is pinned, 0 if none is."""
    return max((parse_pin_name(info.key) or 0 for info in store.list(PIN_PREFIX)), default=0)


def read_manifests(store: ObjectStore, names: Iterable[str]) -> dict[str, Manifest | CorruptCheckpoint]:
    """Each of them, or how it is damaged. UnknownManifest if one is of a newer version."""

    def read(name: str) -> Manifest | CorruptCheckpoint:
        try:
            return read_manifest(store, name)
        except ObjectNotFound:
            return CorruptCheckpoint(f"manifest {name} is missing: the store has no such object")
        except CorruptCheckpoint as reason:
            return reason

    return read_each(names, read)


def read_each(keys: Iterable[_K], read: Callable[[_K], _T]) -> dict[_K, _T]:
    """`read` of every key, a few at a time; the first error is raised."""
    todo = list(keys)
    if not todo:
        return {}
    with ThreadPoolExecutor(max_workers=min(_NUM_READERS, len(todo)), thread_name_prefix="rex-survey") as pool:
        return dict(zip(todo, pool.map(read, todo), strict=True))
