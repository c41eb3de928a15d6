"""One look at a chain: every pin and every manifest, read from the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from cluster.storage.base import ObjectStore
from cluster.storage.records import Pin, read_manifest, read_pin
from jobs.chain import PIN_PREFIX, parse_pin_name
from jobs.errors import CorruptCheckpoint, ObjectNotFound, UnknownManifest
from jobs.manifest import PREFIX, Manifest, parse_name

_NUM_READERS = 8  # a listing of hundreds costs one round trip each; the store sees no more than a browser would ask

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is there. A manifest that cannot be read is given by the reason: that, too, is definite."""

    pins: dict[int, Pin]
    manifests: dict[str, Manifest | CorruptCheckpoint | UnknownManifest]


def survey_store(store: ObjectStore, known_pins: dict[int, Pin]) -> Survey:
    """Read all pins (but those known: they never change) and manifests.

    Pins are listed first: a manifest committed after that under an older attempt is judged by what was pinned.

    Raises:
        CorruptCheckpoint: a pin is damaged: what is alive cannot be told, so nothing may be concluded.
        StoreUnavailable: not everything could be read.
    """
    attempts = [number for info in store.list(PIN_PREFIX) if (number := parse_pin_name(info.key)) is not None]

    def pin(attempt: int) -> Pin:
        return known_pins.get(attempt) or read_pin(store, attempt)

    def manifest(name: str) -> Manifest | CorruptCheckpoint | UnknownManifest | None:
        try:
            return read_manifest(store, name)
        except ObjectNotFound:
            return None  # deleted since it was listed
        except (CorruptCheckpoint, UnknownManifest) as reason:
            return reason

    pins = _each(attempts, pin)
    known_pins.update(pins)
    names = [info.key for info in store.list(PREFIX) if parse_name(info.key) is not None]
    read = _each(names, manifest)
    return Survey(pins=pins, manifests={name: item for name, item in read.items() if item is not None})


_K = TypeVar("_K")


def _each(keys: Iterable[_K], read: Callable[[_K], _T]) -> dict[_K, _T]:
    """`read` of every key, a few at a time; the first error is raised."""
    todo = list(keys)
    if not todo:
        return {}
    with ThreadPoolExecutor(max_workers=min(_NUM_READERS, len(todo)), thread_name_prefix="rex-survey") as pool:
        return dict(zip(todo, pool.map(read, todo), strict=True))
