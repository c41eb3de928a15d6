"""Retirement: the agreement between a collector that wants a manifest's state gone and a start that wants to resume it.

    retired/000001-000000120.000003           intent: while attempt 3 was the newest, a collector wants that state gone
    retired/000001-000000120.000003.decided   what became of it: it goes, or it stays; create-only

A collector writes its intents, then looks whether its attempt is still the newest, then decides that they go, then
deletes. A start writes its pin, then reads the intents on what it chose, and decides of open ones that it stays. So
one sees the other, or both do, and then the one create-only decision has one winner. No clock is consulted, and either
may die at any point: what was decided may be carried out by anyone, what was not is open.

A start that loses never began: whoever finds that an intent from before its pin was decided against the manifest that
it names leaves that pin out when it asks what is alive. Of a start that began that is never found. It decided all such
intents that it saw, and one written after it looked is of a collector that finds its pin and decides nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from cluster.storage.base import ObjectStore
from cluster.storage.chain.records import read_sealed
from cluster.storage.chain.seal import seal
from jobs.errors import AlreadyExistsError, CorruptCheckpoint, ObjectNotFound, StoreUnavailable
from jobs.manifest import PREFIX as MANIFESTS

PREFIX = "retired/"
_KEY = re.compile(r"retired/(\d{6}-\d{9})\.(\d{6})(\.decided)?", re.ASCII)
_VERSION = 1


class Retirements:
    """The intents and decisions that were listed.

    A decision that cannot be read decides nothing: the state is taken for one that stays, and its files tell whether
    it is there. `decisions` are those read before, which never change; those read now are added.
    """

    def __init__(self, keys: Iterable[str], decisions: dict[str, bool] | None = None) -> None:
        self._intents: dict[str, dict[str, int]] = {}  # of each manifest, with the attempt that was the newest
        self._decided: set[str] = set()
        self._decisions = {} if decisions is None else decisions
        self.keys = frozenset(keys)
        for key in self.keys:
            match = _KEY.fullmatch(key)
            if match is None:
                continue
            if match[3]:
                self._decided.add(key.removesuffix(".decided"))
            else:
                self._intents.setdefault(f"{MANIFESTS}{match[1]}.json", {})[key] = int(match[2])

    def names(self) -> set[str]:
        """Manifests whose retirement was begun."""
        return set(self._intents)

    def went(self, store: ObjectStore, manifest: str, *, before: int | None = None) -> bool:
        """Whether it was decided that this manifest's state goes; of a collector `before` that attempt, if given."""
        return any(
            self._goes(store, key)
            for key, attempt in sorted(self._intents.get(manifest, {}).items(), reverse=True)
            if key in self._decided and (before is None or attempt < before)
        )

    def keep(self, store: ObjectStore, manifest: str, nonce: str) -> None:
        """Decide, for a start that is pinned to `manifest`, that its state stays.

        Raises:
            StoreUnavailable: a collector has decided otherwise, so the start never began: the next one chooses anew.
        """
        for key in sorted(self._intents.get(manifest, {})):
            if _decide(store, key, goes=False, nonce=nonce):
                raise StoreUnavailable(
                    f"{store.uri}: the state of {manifest} is being deleted by a collector",
                    hint="start again: the next attempt resumes another checkpoint",
                )

    def _goes(self, store: ObjectStore, intent: str) -> bool:
        if intent not in self._decisions:
            try:
                self._decisions[intent] = _read_decision(store, intent)
            except (CorruptCheckpoint, ObjectNotFound):
                return False
        return self._decisions[intent]


def intend(store: ObjectStore, manifest: str, attempt: int, nonce: str) -> str:
    """Write the intent to retire `manifest` while `attempt` is the newest; returns its key."""
    key = f"{PREFIX}{manifest.removeprefix(MANIFESTS).removesuffix('.json')}.{attempt:06d}"
    _create(store, key, {"manifest": manifest}, nonce)
    return key


def decide_to_delete(store: ObjectStore, intent: str, nonce: str) -> bool:
    """Whether the state may be deleted: decided now, or by whoever was first."""
    return _decide(store, intent, goes=True, nonce=nonce)


def _decide(store: ObjectStore, intent: str, *, goes: bool, nonce: str) -> bool:
    """What is decided in the end: True if the state goes."""
    if _create(store, f"{intent}.decided", {"intent": intent, "goes": goes}, nonce):
        return goes
    try:
        return _read_decision(store, intent)
    except (CorruptCheckpoint, ObjectNotFound):
        return False  # as `Retirements` has it


def _read_decision(store: ObjectStore, intent: str) -> bool:
    values = read_sealed(store, f"{intent}.decided")
    goes = values.get("goes")
    if values.get("intent", intent) != intent:  # the first ones did not say
        raise CorruptCheckpoint(f"{intent}.decided says it is of {values['intent']}")
    if not isinstance(goes, bool):
        raise CorruptCheckpoint(f"{intent}.decided says neither that the state goes nor that it stays")
    return goes


def _create(store: ObjectStore, key: str, values: dict[str, object], nonce: str) -> bool:
    """Whether it is ours; somebody else may have been first."""
    try:
        store.create(key, seal({"version": _VERSION, **values, "nonce": nonce, "created_at": time.time()}))
    except AlreadyExistsError:
        return False
    return True
