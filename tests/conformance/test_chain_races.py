"""Starts, late commits, lost replies and collections against each other; and stores that are not the ones they were."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectStore
from cluster.storage.base import Leftover
from cluster.storage.chain.checkpoints import CheckpointStore, Start
from cluster.storage.chain.gc import Collected, collect
from cluster.storage.chain.reader import CheckpointReader
from cluster.storage.chain.retired import decide_to_delete, intend
from jobs.errors import CorruptCheckpoint, StoreUnavailable
from jobs.manifest import Manifest
from jobs.retention import Retention
from orchestrator.checkpoints.chains import Chain
from orchestrator.checkpoints.listing import find_checkpoints
from tests.support.chains import committed, make_commit
from tests.support.interleave import Gated, every_order
from tests.support.stores import Failing, Memory, Wrapped

ONE = Retention(last=1)


def chain(store: ObjectStore, folder: Path, steps: list[int]) -> tuple[CheckpointStore, list[Manifest]]:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    return writer, committed(writer, folder, 1, steps, None)


def start(store: ObjectStore, attempt: int) -> Manifest | None:
    return CheckpointStore(store, "j").start_attempt(attempt).manifest


# -- a start, a commit that was on its way, and a collection


class Gap(Wrapped):
    """Something happens between a start's look and its pin."""

    def __init__(self, store: ObjectStore, pin: str, happens: Any) -> None:
        super().__init__(store)
        self._pin, self._happens = pin, happens

    def before(self, operation: str, key: str) -> None:
        if (operation, key) == ("create", self._pin) and self._happens is not None:
            happens, self._happens = self._happens, None
            happens()


def test_start_that_lost_to_a_collection_counts_for_nothing(store: ObjectStore, tmp_path: Path) -> None:
    writer, manifests = chain(store, tmp_path, [10, 20])
    late: list[Manifest] = []

    def happens() -> None:
        late.append(make_commit(writer, tmp_path, 1, 30, manifests[1]))
        assert manifests[1].name in writer.collect(ONE).retired

    with pytest.raises(StoreUnavailable, match="the next attempt resumes another checkpoint"):
        start(Gap(store, "attempts/000002", happens), 2)
    assert [one.name for one in writer.manifests() if one.live and not one.retired] == [late[0].name]
    assert collect(store, "j", ONE).kept == {late[0].name: "the newest that verifies"}
    assert start(store, 3) == late[0]
    assert start(store, 4) == late[0]


def test_pin_that_a_later_collection_outlives_still_counts(store: ObjectStore, tmp_path: Path) -> None:
    """What attempt 2 started from goes while attempt 3 is the newest: attempt 2 began all the same."""
    writer, manifests = chain(store, tmp_path, [10])
    second = CheckpointStore(store, "j")
    assert second.start_attempt(2).manifest == manifests[0]
    newest = make_commit(second, tmp_path, 2, 20, manifests[0])
    assert start(store, 3) == newest
    assert collect(store, "j", ONE).retired == (manifests[0].name,)
    assert [one.name for one in writer.manifests() if one.live] == [newest.name, manifests[0].name]
    assert start(store, 4) == newest


def test_start_beside_a_late_commit_and_its_collection_leaves_a_whole_checkpoint_to_the_next(tmp_path: Path) -> None:
    """All orders of what matters: the commit arrives, the collection that sees it, and a start that may not have."""
    template = Memory()
    _, manifests = chain(template, tmp_path, [10, 20])
    old, late = manifests
    state = old.file("state").key
    body = template.objects.pop(late.name)  # on its way
    stores: list[Memory] = []

    def make() -> tuple[Gated, Any, Gated, Any]:
        store = Memory()
        store.objects = dict(template.objects)
        stores.append(store)
        collector = Gated(store, lambda op, key: op in ("create", "delete") or (op, key) == ("list", "attempts/"))
        starter = Gated(store, lambda op, key: op == "create" or (op == "list" and key != "attempts/") or key == state)

        def arrive_and_collect() -> Collected:
            collector.create(late.name, body)
            return collect(collector, "j", ONE)

        return collector, arrive_and_collect, starter, lambda: CheckpointStore(starter, "j").start_attempt(2)

    seen = {"old": 0, "late": 0, "given up": 0}
    for collected, started in every_order(make):
        store = stores.pop()
        assert isinstance(collected, Collected), collected
        if isinstance(started, Start):
            expected = started.manifest
            seen["old" if expected == old else "late"] += 1
        else:
            assert isinstance(started, StoreUnavailable), started
            expected = late
            seen["given up"] += 1
        assert start(store, 3) == expected in (old, late)
        collect(store, "j", ONE)
        assert CheckpointStore(store, "j").newest() == expected
    assert all(seen.values()), seen


# -- decisions that cannot be read


@pytest.mark.parametrize("body", [b"{}", b"no JSON", b""])
@pytest.mark.parametrize("goes", [False, True])
def test_damaged_decision_stops_neither_starts_nor_collections(
    store: ObjectStore, tmp_path: Path, goes: bool, body: bytes
) -> None:
    writer, manifests = chain(store, tmp_path, [10, 20, 30])
    intent = intend(store, manifests[1].name, 1, "n" * 8)
    if goes:
        assert decide_to_delete(store, intent, "n" * 8)
    else:
        store.delete(manifests[2].files[0].key)
        assert start(store, 2) == manifests[1]  # it decides that the state stays
    (tmp_path / "bad").write_bytes(body)
    store.put_file(f"{intent}.decided", tmp_path / "bad")
    expected = manifests[2] if goes else manifests[1]
    assert not any(one.retired for one in writer.manifests())
    collect(store, "j", ONE)
    writer.verify(manifests[1])  # the collection keeps what it cannot decide anew
    assert start(store, 3) == expected
    collect(store, "j", ONE)
    assert start(store, 4) == expected


def test_decision_of_another_manifest_under_this_ones_name_decides_nothing(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path, [10, 20])
    store.delete(manifests[1].files[0].key)
    kept = intend(store, manifests[0].name, 1, "n" * 8)
    gone = intend(store, manifests[1].name, 1, "n" * 8)
    assert decide_to_delete(store, gone, "n" * 8)
    assert start(store, 2) == manifests[0]
    (tmp_path / "other").write_bytes(store.get(f"{gone}.decided"))
    store.put_file(f"{kept}.decided", tmp_path / "other")
    assert start(store, 3) == manifests[0]


def test_checkpoint_quarantined_by_a_start_that_never_began_is_where_the_next_begins(
    store: ObjectStore, tmp_path: Path
) -> None:
    _, manifests = chain(store, tmp_path, [10, 20])
    state = manifests[1].files[0]
    body = store.get(state.key)
    store.delete(state.key)
    with pytest.raises(StoreUnavailable):
        start(Failing(store, "create", "attempts/"), 2)
    (tmp_path / "healed").write_bytes(body)
    store.put_file(state.key, tmp_path / "healed")
    listed = find_checkpoints(Chain(job="j", store=store, row=None, checkpoints=CheckpointReader(store, "j")))
    assert [(one.step, one.state, one.resumes) for one in listed] == [(20, "quarantined", True), (10, "live", False)]
    assert start(store, 2) == manifests[1]


# -- nothing whole, nothing deleted; and what the policy counts


def test_nothing_live_that_can_be_read_means_dead_branches_stay_too(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path, [10, 20])
    state = store.get(manifests[1].files[0].key)
    store.delete(manifests[1].files[0].key)
    start(store, 2)
    for key, body in ((manifests[1].files[0].key, state), (manifests[0].name, b"{}")):
        (tmp_path / "other").write_bytes(body)
        store.put_file(key, tmp_path / "other")
    before = store.list("")
    with pytest.raises(CorruptCheckpoint, match=r"none of 1 live .* nothing is deleted"):
        collect(store, "j", Retention())
    assert store.list("") == before


def test_what_is_gone_takes_no_place_among_the_best_and_the_newest(store: ObjectStore, tmp_path: Path) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    made: list[Manifest] = []
    for step, top1 in ((10, 0.9), (20, 0.8), (30, 0.5), (40, 0.4)):
        made.append(make_commit(writer, tmp_path, 1, step, made[-1] if made else None, metrics={"top1": top1}))
        if step == 20:
            assert writer.collect(ONE).retired == (made[0].name,)
    assert set(writer.collect(Retention(last=1, best=1)).kept) == {made[1].name, made[3].name}


# -- a commit whose reply was lost


class LosesReply(Wrapped):
    """The manifest arrives, and its reply does not, once it is told so."""

    losing = False

    def create(self, key: str, body: bytes) -> None:
        super().create(key, body)
        if self.losing and key.startswith("manifests/"):
            self.losing = False
            raise StoreUnavailable(f"create {key}: reply lost")


def test_commit_after_one_whose_reply_was_lost_names_nothing_that_a_collection_takes(
    store: ObjectStore, tmp_path: Path
) -> None:
    losing = LosesReply(store)
    writer = CheckpointStore(losing, "j")
    writer.start_attempt(1)
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 99)

    def commit(step: int, parent: Manifest | None, state: str) -> Manifest:
        return make_commit(writer, tmp_path, 1, step, parent, files={"state": tmp_path / state})

    first = commit(10, None, "a")
    losing.losing = True
    with pytest.raises(StoreUnavailable):
        commit(20, first, "b")
    assert collect(store, "j", ONE).retired == (first.name,)  # by somebody else, who sees 20
    third = commit(30, first, "a")
    writer.verify(third)
    assert commit(40, third, "a").files == third.files  # and from then on content is shared again
    losing.losing = True
    with pytest.raises(StoreUnavailable):
        commit(50, writer.newest(), "a")
    again = commit(50, writer.load("manifests/000001-000000040.json"), "a")
    assert again.files == third.files and writer.newest() == again


# -- collections that give way, and read nothing twice


class Counting(Wrapped):
    """Counts requests by their kind, except listings."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.counts: dict[str, int] = {}

    def before(self, operation: str, key: str) -> None:
        if operation not in ("list", "leftovers"):
            self.counts[operation] = self.counts.get(operation, 0) + 1


def test_routine_collection_reads_what_is_new_alone(tmp_path: Path) -> None:
    store = Counting(Memory())
    writer, manifests = chain(store, tmp_path, list(range(1, 41)))
    writer.collect(Retention(last=3))
    store.counts.clear()
    make_commit(writer, tmp_path, 1, 41, manifests[-1])
    store.counts.clear()
    assert len(writer.collect(Retention(last=3)).retired) == 1
    # the new manifest; the decisions of the last collection; the newest one's two files; intent, decision, deletion
    assert store.counts == {"get": 1 + 37, "get_file": 2, "create": 2, "delete": 1}
    store.counts.clear()
    writer.collect(Retention(last=3))
    assert store.counts == {"get": 1, "get_file": 2}  # one more decision


class Later(Exception):
    """Whoever asked for the collection has better things to do."""


def test_collection_is_asked_before_each_request_and_ends_there(tmp_path: Path) -> None:
    for at in itertools.count():
        store = Counting(Memory())
        writer, manifests = chain(store, tmp_path, [10, 20, 30])
        asked, before = [0], len(store.list(""))
        store.counts.clear()

        def go_on(asked: list[int] = asked, at: int = at) -> None:
            asked[0] += 1
            if asked[0] > at:
                raise Later

        try:
            writer.collect(ONE, go_on=go_on)
        except Later:
            assert sum(store.counts.values()) <= at + 1  # and the pin
            assert at or len(store.list("")) == before
            assert writer.newest() == manifests[2]
        else:
            assert sum(store.counts.values()) - 1 == asked[0] == at
            assert at == 3 + 2 + 2 * 3  # manifests, the newest one's files; intent, decision and deletion of two states
            return


# -- leftovers of decisions


class Unfinished(Wrapped):
    """Somebody is just writing these keys, or died in it."""

    keys: tuple[str, ...] = ()

    def leftovers(self, prefix: str) -> list[Leftover]:
        return [Leftover(key=key, token="t", size_bytes=1) for key in self.keys if key.startswith(prefix)]

    def discard(self, leftover: Leftover) -> None:
        self.keys = tuple(key for key in self.keys if key != leftover.key)


def test_decision_that_is_just_written_is_not_settled_before_the_newest_attempt_has_ended(tmp_path: Path) -> None:
    store = Unfinished(Memory())
    chain(store, tmp_path, [10])
    start(store, 2)
    base = "retired/000001-000000010.000001"
    store.keys = (base, f"{base}.decided")  # attempt 2 may be about to decide an intent of attempt 1
    assert [left.key for left in collect(store, "j", ONE).leftovers] == [base]
    assert store.keys == (f"{base}.decided",)
    assert len(collect(store, "j", ONE, ended=2).leftovers) == 1 and store.keys == ()


# -- another store than it was


@pytest.mark.parametrize("attempt", [2, None])
def test_store_without_the_attempt_that_has_committed_is_not_that_store(
    store: ObjectStore, attempt: int | None
) -> None:
    with pytest.raises(StoreUnavailable, match=r"has no attempt 1, .* mounted"):
        CheckpointStore(store, "j").start_attempt(attempt, must_resume="manifests/000001-000000010.json")
    assert store.list("") == []
    CheckpointStore(store, "j").start_attempt(1)  # attempt 2 has committed somewhere else
    with pytest.raises(StoreUnavailable, match="has no attempt 2"):
        CheckpointStore(store, "j").start_attempt(3, must_resume="manifests/000002-000000010.json")
    assert [info.key for info in store.list("")] == ["attempts/000001"]


def test_pin_that_is_missing_though_its_attempt_has_committed_stops_all(store: ObjectStore, tmp_path: Path) -> None:
    chain(store, tmp_path, [10])
    second = CheckpointStore(store, "j")
    make_commit(second, tmp_path, 2, 20, second.start_attempt(2).manifest)
    store.delete("attempts/000002")
    before = store.list("")
    with pytest.raises(CorruptCheckpoint, match="attempts/000002 is missing"):
        start(store, 3)
    with pytest.raises(CorruptCheckpoint, match="attempts/000002 is missing"):
        collect(store, "j", ONE)
    assert store.list("") == before


def test_attempt_that_started_and_committed_while_we_listed_is_seen(tmp_path: Path) -> None:
    memory = Memory()
    _, manifests = chain(memory, tmp_path, [10])

    class Meanwhile(Wrapped):
        done = False

        def before(self, operation: str, key: str) -> None:
            if (operation, key) == ("list", "manifests/") and not self.done:
                self.done = True
                second = CheckpointStore(memory, "j")
                make_commit(second, tmp_path, 2, 20, second.start_attempt(2).manifest)

    newest = CheckpointStore(Meanwhile(memory), "j").newest()
    assert newest is not None and (newest.attempt, newest.step, newest.parent) == (2, 20, manifests[0].name)


# -- one bad read


class OneBad(Wrapped):
    """The first read below `prefix` is not what is stored: a bit flipped in memory, or on the way."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        super().__init__(store)
        self._prefix, self.flipped = prefix, False

    def _flips(self, key: str) -> bool:
        if self.flipped or not key.startswith(self._prefix):
            return False
        self.flipped = True
        return True

    def get(self, key: str) -> bytes:
        body = super().get(key)
        return bytes([body[0] ^ 1]) + body[1:] if self._flips(key) else body

    def get_file(self, key: str, path: Path) -> str:
        digest = super().get_file(key, path)
        return "0" * 64 if self._flips(key) else digest


@pytest.mark.parametrize("prefix", ["objects/", "manifests/", "attempts/", "retired/"])
def test_one_bad_read_is_no_verdict(store: ObjectStore, tmp_path: Path, prefix: str) -> None:
    _, manifests = chain(store, tmp_path, [10, 20])
    store.delete(manifests[1].files[0].key)
    intend(store, manifests[0].name, 1, "n" * 8)
    assert start(store, 2) == manifests[0]  # and decides that the state stays
    bad = OneBad(store, prefix)
    started = CheckpointStore(bad, "j").start_attempt(3)
    assert bad.flipped and (started.manifest, started.quarantined) == (manifests[0], ())


def test_one_bad_read_of_a_small_file_is_read_again(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path, [10])
    bad = OneBad(store, "objects/")
    assert CheckpointStore(bad, "j").read(manifests[0], "state").startswith(b"state of 1, 10") and bad.flipped
