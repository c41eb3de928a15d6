"""The store doctor: tries out what a store really does, and picks the commit protocol that is safe on it.

Nothing that the store says is believed: each check is what is read back afterwards. The checks here need only the
`ObjectStore` protocol; `doctor_s3` and `doctor_directory` add those of one kind of store. All of it happens in a room
of its own, which is removed at the end whatever happened; so are those of doctors that were killed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from cluster.storage import open_store
from cluster.storage.base import CommitProtocol, ConditionUnsupported, ObjectStore
from cluster.storage.check import Check
from cluster.storage.directory import DirectoryStore
from cluster.storage.scratch import DOCTOR, NUM_TRIES, Room, sweep_rooms
from jobs.errors import AlreadyExistsError, RexError, StoreUnavailable

_NUM_WRITERS = 8
_NUM_RACES = 4
_NUM_LISTINGS = 3
_THROUGHPUT_BYTES = 8 << 20

READ_AFTER_WRITE = "read after write"
LIST_AFTER_WRITE = "list after write and delete"
CREATE_ONLY = "create-only put"
CREATE_ONLY_RACE = f"create-only put, {_NUM_WRITERS} writers at once"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What a store does; `protocol` is None where no commit protocol is safe on it, and `reason` says why."""

    uri: str
    protocol: CommitProtocol | None
    reason: str
    checks: tuple[Check, ...]

    def check(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(uri: str, *, profile: str | None = None) -> Diagnosis:
    """Examine the store at `uri`.

    Raises:
        SpecError: not a store's URI.
        StoreUnavailable: it cannot be reached, or not be written or read with these credentials.
    """
    return examine(open_store(uri, profile=profile))


def examine(store: ObjectStore) -> Diagnosis:
    """As `diagnose`, of an open store; its protocol must be "create-only"."""
    there = store.list(DOCTOR)
    checks = _checks(store)
    with suppress(StoreUnavailable):  # what others left takes room, and says nothing of the store
        sweep_rooms(store, there)
    protocol, reason = _choose({check.name: bool(check.holds) for check in checks})
    return Diagnosis(uri=store.uri, protocol=protocol, reason=reason, checks=tuple(checks))


def _checks(store: ObjectStore) -> list[Check]:
    """All that is to be seen, in a room that nobody has disturbed: see `cluster.storage.scratch`."""
    for _ in range(NUM_TRIES):
        with Room(store) as room:
            room.mark()
            try:
                checks = [_read_after_write(room), _list_after_write(room), _create_only(room)]
                checks += [_race(room, checks[-1])]
                checks += _of_its_kind(room)
                checks += _throughput(room)
            except RexError:
                if room.is_marked():
                    raise
            else:
                if room.is_marked():
                    return checks
    raise StoreUnavailable(
        f"{store.uri}: what the doctor wrote was gone before it had finished, {NUM_TRIES} times",
        hint="is something else cleaning up there?",
    )


def _choose(holds: dict[str, bool]) -> tuple[CommitProtocol | None, str]:
    if not holds[READ_AFTER_WRITE]:
        return None, "what was just written is not what is read: a commit could not be told from none"
    if not holds[LIST_AFTER_WRITE]:
        return None, "listings lag behind: a resume could take an old checkpoint for the newest one"
    if holds[CREATE_ONLY] and holds[CREATE_ONLY_RACE]:
        return "create-only", "of writers of the same key exactly one wins: the store itself fences attempts"
    return "allotted", "no exclusive write: only the job database may allot attempts, bare runs are refused"


def _of_its_kind(room: Room) -> list[Check]:
    if isinstance(room.store, DirectoryStore):
        from cluster.storage.doctor_directory import directory_checks

        return directory_checks(room, room.store)
    if room.store.uri.startswith("s3://"):
        from cluster.storage.doctor_s3 import s3_checks
        from cluster.storage.s3 import S3Store

        return s3_checks(room, room.store) if isinstance(room.store, S3Store) else []
    return []


def _read_after_write(room: Room) -> Check:
    key = room.key("read")
    stale = 0
    for body in (b"first", b"second, and longer", b"3rd"):
        room.put(key, body)
        stale += room.read(key) != body
    room.store.delete(key)
    gone = room.read(key) is None
    seen = f"{stale} of 3 reads were not what was written" if stale else "each read showed the newest write"
    return Check(
        name=READ_AFTER_WRITE,
        holds=not stale and gone,
        seen=seen if gone else f"{seen}; a deleted object could still be read",
        meaning="needed: a commit is verified by reading it",
    )


def _list_after_write(room: Room) -> Check:
    prefix = room.prefix + "list/"
    expected: list[str] = []
    wrong = 0

    def listed() -> list[str]:
        return [info.key for info in room.store.list(prefix)]

    for number in range(_NUM_LISTINGS):
        expected.append(room.key(f"list/{number}"))
        room.put(expected[-1], b"x")
        wrong += listed() != expected
    while expected:
        room.store.delete(expected.pop())
        wrong += listed() != expected
    return Check(
        name=LIST_AFTER_WRITE,
        holds=not wrong,
        seen=f"{2 * _NUM_LISTINGS - wrong} of {2 * _NUM_LISTINGS} listings showed just what was there",
        meaning="needed: the newest checkpoint and attempt are found by listing",
    )


def _create_only(room: Room) -> Check:
    key = room.key("create")
    meaning = "needed for create-only: a second commit of the same step is refused"
    try:
        room.store.create(key, b"first")
        room.store.create(key, b"second")
        told = "it was accepted"
    except AlreadyExistsError:
        told = "it was refused"
    except ConditionUnsupported as error:
        return Check(name=CREATE_ONLY, holds=False, seen=str(error.args[0]), meaning=meaning)
    kept = room.read(key)
    if kept != b"first":
        return Check(name=CREATE_ONLY, holds=False, seen=f"a second write: {told}, and replaced", meaning=meaning)
    return Check(name=CREATE_ONLY, holds=told == "it was refused", seen=f"a second write: {told}", meaning=meaning)


def _race(room: Room, sequential: Check) -> Check:
    """Exactly one of the writers is told that it won, and its bytes are the ones that are there."""
    meaning = "needed for create-only: of two nodes that claim an attempt, one goes on"
    if not sequential.holds:
        return Check(name=CREATE_ONLY_RACE, holds=False, seen="not tried: one writer after another", meaning=meaning)
    barrier = threading.Barrier(_NUM_WRITERS)

    def write(key: str, body: bytes) -> bool:
        barrier.wait(60)
        try:
            room.store.create(key, body)
        except AlreadyExistsError:
            return False
        return True

    bad = []
    bodies = [f"writer {number}".encode() for number in range(_NUM_WRITERS)]
    with ThreadPoolExecutor(_NUM_WRITERS) as pool:
        for turn in range(_NUM_RACES):
            key = room.key(f"race/{turn}")
            won = list(pool.map(write, [key] * _NUM_WRITERS, bodies))
            winners = [body for body, success in zip(bodies, won, strict=True) if success]
            if winners != [room.read(key)]:
                bad.append(f"{len(winners)} winners")
    seen = ", ".join(bad) if bad else f"one winner in each of {_NUM_RACES} races"
    return Check(name=CREATE_ONLY_RACE, holds=not bad, seen=seen, meaning=meaning)


def _throughput(room: Room) -> list[Check]:
    key = room.key("large")
    body = os.urandom(_THROUGHPUT_BYTES)
    room.path.write_bytes(body)
    put_s = _seconds(lambda: room.store.put_file(key, room.path))
    get_s = _seconds(lambda: room.store.get_file(key, room.path))
    same = room.path.read_bytes() == body
    size = f"{_THROUGHPUT_BYTES >> 20} MiB, one object"
    return [
        Check(
            name=f"{verb} throughput",
            holds=None if same else False,
            seen=f"{_THROUGHPUT_BYTES / 1e6 / seconds:.0f} MB/s ({size})" if same else "it came back otherwise",
            meaning="what a checkpoint's upload and a resume take",
        )
        for verb, seconds in (("put", put_s), ("get", get_s))
    ]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
