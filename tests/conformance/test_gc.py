"""What a collection may delete, on every store; and that neither a kill nor a race makes it delete anything else."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectStore
from cluster.storage.chain.checkpoints import CheckpointStore, Start
from cluster.storage.chain.gc import Collected, collect
from jobs.errors import CorruptCheckpoint, SpecError, StoreUnavailable, UnknownManifest
from jobs.manifest import OBJECT_PREFIX, Manifest
from jobs.retention import Retention
from tests.conformance.backends import Backend
from tests.support.chains import committed, make_commit
from tests.support.interleave import Gated, every_order
from tests.support.stores import Failing, Memory, Wrapped

ONE = Retention(last=1)


def chain(store: ObjectStore, folder: Path, steps: int = 4) -> tuple[CheckpointStore, list[Manifest]]:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    return writer, committed(writer, folder, 1, [10 * (i + 1) for i in range(steps)], None)


def states(store: ObjectStore, manifests: list[Manifest]) -> list[int]:
    """Steps of those whose state is still there."""
    present = {info.key for info in store.list(OBJECT_PREFIX)}
    return [m.step for m in manifests if any(f.key in present for f in m.files if not f.history)]


def test_state_that_is_not_kept_goes_and_the_record_stays(store: ObjectStore, tmp_path: Path) -> None:
    writer, manifests = chain(store, tmp_path)
    done = collect(store, "j", Retention(last=1, every_steps=20))
    assert set(done.kept) == {manifests[1].name, manifests[3].name}
    assert set(done.retired) == {manifests[0].name, manifests[2].name} and done.size_bytes > 0
    assert states(store, manifests) == [20, 40]
    assert writer.history(manifests[3]) == manifests[::-1]
    for manifest in manifests:
        assert writer.read(manifest, "metrics.jsonl")  # the run's record
    assert [(m.manifest.step, m.retired, m.live) for m in writer.manifests() if m.manifest] == [
        (40, False, True), (30, True, True), (20, False, True), (10, True, True)]  # fmt: skip
    assert collect(store, "j", Retention(last=1, every_steps=20)).objects == ()


def test_best_by_metric_is_kept(store: ObjectStore, tmp_path: Path) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    parent: Manifest | None = None
    for step, top1 in ((10, 0.5), (20, 0.9), (30, 0.9), (40, float("nan")), (50, 0.7)):
        parent = make_commit(writer, tmp_path, 1, step, parent, metrics={"top1": top1})
    kept = collect(store, "j", Retention(last=1, best=1)).kept
    assert sorted(kept) == ["manifests/000001-000000020.json", "manifests/000001-000000050.json"]


def test_retired_checkpoint_is_passed_over_without_quarantine(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path)
    collect(store, "j", Retention(last=1, every_steps=20))
    store.delete(manifests[3].files[0].key)
    start = CheckpointStore(store, "j").start_attempt(2)
    assert start.manifest == manifests[1]
    assert [item.manifest for item in start.quarantined] == [manifests[3].name]


def test_without_a_policy_everything_live_stays_and_dead_branches_go(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path)
    body = store.get(manifests[3].files[0].key)
    store.delete(manifests[3].files[0].key)
    successor = CheckpointStore(store, "j")
    assert successor.start_attempt(2).manifest == manifests[2]
    (tmp_path / "healed").write_bytes(body)
    store.put_file(manifests[3].files[0].key, tmp_path / "healed")
    done = collect(store, "j", Retention())
    assert done.retired == (manifests[3].name,)
    assert states(store, manifests) == [10, 20, 30]


def test_upload_without_a_manifest_is_safe_until_it_cannot_be_named_any_more(
    store: ObjectStore, tmp_path: Path
) -> None:
    writer, manifests = chain(store, tmp_path, steps=1)
    dying = CheckpointStore(Failing(store, "create", "manifests/"), "j")
    with pytest.raises(StoreUnavailable):
        make_commit(dying, tmp_path, 1, 20, manifests[0])
    before = store.list("")
    assert collect(store, "j", ONE).unsettled == 2
    assert store.list("") == before
    make_commit(writer, tmp_path, 1, 30, manifests[0])
    done = collect(store, "j", Retention())
    assert len(done.objects) == 2 and done.unsettled == 0
    with pytest.raises(StoreUnavailable):
        make_commit(dying, tmp_path, 1, 40, writer.newest())
    CheckpointStore(store, "j").start_attempt(2)
    assert len(collect(store, "j", Retention()).objects) == 2


def test_shared_content_stays_as_long_as_one_that_stays_names_it(store: ObjectStore, tmp_path: Path) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    (tmp_path / "frozen").write_bytes(b"frozen" * 100)
    parent: Manifest | None = None
    for step in (10, 20, 30):
        parent = make_commit(writer, tmp_path, 1, step, parent, also={"frozen": tmp_path / "frozen"})
    done = collect(store, "j", ONE)
    assert len(done.retired) == 2
    writer.verify(parent)  # type: ignore[arg-type]


def test_damaged_newest_makes_the_one_that_verifies_stay(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path)
    store.delete(manifests[3].files[0].key)
    assert set(collect(store, "j", ONE).kept) == {manifests[2].name, manifests[3].name}
    assert CheckpointStore(store, "j").start_attempt(2).manifest == manifests[2]


def test_nothing_that_verifies_means_nothing_is_deleted(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path)
    for manifest in manifests:
        store.delete(manifest.files[0].key)
    before = store.list("")
    with pytest.raises(CorruptCheckpoint, match="nothing is deleted"):
        collect(store, "j", ONE)
    assert store.list("") == before


def test_what_the_newest_attempt_resumed_from_stays(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path)
    successor = CheckpointStore(store, "j")
    start = successor.start_attempt(2)
    committed(successor, tmp_path, 2, [50, 60, 70], start.manifest)
    assert set(collect(store, "j", ONE).kept) == {manifests[3].name, "manifests/000002-000000070.json"}


def test_objects_beside_a_damaged_manifest_stay(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path)
    (tmp_path / "bad").write_bytes(b"{}")
    store.put_file(manifests[1].name, tmp_path / "bad")
    collect(store, "j", ONE)
    assert states(store, manifests) == [20, 40]


def test_newer_version_among_the_manifests_means_nothing_is_deleted(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path)
    (tmp_path / "newer").write_bytes(b'{"version": 2}')
    store.put_file(manifests[0].name, tmp_path / "newer")
    before = store.list("")
    with pytest.raises(UnknownManifest):
        collect(store, "j", ONE)
    assert store.list("") == before


def test_dry_run_tells_the_same_and_writes_nothing(store: ObjectStore, tmp_path: Path) -> None:
    chain(store, tmp_path)
    before = store.list("")
    told = collect(store, "j", ONE, dry_run=True)
    assert store.list("") == before
    done = collect(store, "j", ONE)
    assert (told.retired, told.objects, told.kept) == (done.retired, done.objects, done.kept)


def test_store_that_does_not_answer_means_nothing_is_deleted(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path)
    for operation, prefix in (("list", "objects/"), ("list", "attempts/"), ("get", "manifests/"), ("get_file", "")):
        with pytest.raises(StoreUnavailable):
            collect(Failing(store, operation, prefix), "j", ONE)
    assert states(store, manifests) == [10, 20, 30, 40]


class Allotted(Wrapped):
    protocol = "allotted"


def test_store_without_conditional_put_is_collected_alone_only(store: ObjectStore, tmp_path: Path) -> None:
    _, manifests = chain(store, tmp_path)
    with pytest.raises(SpecError, match="no conditional put"):
        collect(Allotted(store), "j", ONE)
    collect(Allotted(store), "j", ONE, alone=True)
    assert states(store, manifests) == [40]


class Killed(BaseException):
    """As SIGKILL: nothing of ours runs after it."""


class Dying(Wrapped):
    """Dies before its n-th write, or right after it."""

    def __init__(self, store: ObjectStore, at: int, after: bool) -> None:
        super().__init__(store)
        self._left, self._after = at, after

    def _write(self, write: Any) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Killed
        write()
        if self._left == 0:
            raise Killed

    def create(self, key: str, body: bytes) -> None:
        self._write(lambda: self.store.create(key, body))

    def delete(self, key: str) -> None:
        self._write(lambda: self.store.delete(key))


@pytest.mark.parametrize("backend", ["directory"], indirect=True)
@pytest.mark.parametrize("after", [False, True])
def test_collector_killed_at_any_write_leaves_a_chain_that_the_next_one_finishes(
    backend: Backend, tmp_path: Path, after: bool
) -> None:
    for at in itertools.count(1):
        store = Memory()
        writer, manifests = chain(store, tmp_path)
        try:
            collect(Dying(store, at, after), "j", ONE)
        except Killed:
            assert writer.newest() == manifests[3]
            collect(store, "j", ONE)
            assert states(store, manifests) == [40]
            assert writer.history(manifests[3]) == manifests[::-1]
            assert CheckpointStore(store, "j").start_attempt(2).manifest == manifests[3]
        else:
            assert at > 9  # three intents, three decisions, three deletions at least
            return


def _writes(operation: str, key: str) -> bool:
    """Requests of a collector whose order matters: what it writes, and its looks at the pins."""
    return operation in ("create", "delete") or (operation == "list" and key == "attempts/")


def _claims(operation: str, key: str) -> bool:
    """Requests of a start whose order matters: reading states, its pin, its looks at retirements and its answer."""
    return operation in ("create", "get_file") or (operation == "list" and key.startswith("retired/"))


def test_start_beside_a_collector_never_gets_a_state_that_goes(tmp_path: Path) -> None:
    """All orders, while the only newer checkpoint rots after the collector has verified it."""
    stores: list[Memory] = []

    class Rotting(Gated):
        """The newest checkpoint is lost once the collector has begun to write."""

        def create(self, key: str, body: bytes) -> None:
            self.store.delete(newest)
            super().create(key, body)

    template = Memory()
    _, manifests = chain(template, tmp_path, steps=2)
    newest = manifests[1].files[0].key

    def make() -> tuple[Gated, Any, Gated, Any]:
        store = Memory()
        store.objects = dict(template.objects)
        stores.append(store)
        collector, starter = Rotting(store, _writes), Gated(store, _claims)
        return (
            collector, lambda: collect(collector, "j", ONE),
            starter, lambda: CheckpointStore(starter, "j").start_attempt(2),
        )  # fmt: skip

    seen = {"kept": 0, "given up": 0, "newest": 0}
    for collected, started in every_order(make):
        store = stores.pop()
        assert isinstance(collected, Collected), collected
        if isinstance(started, Start) and started.manifest == manifests[0]:
            seen["kept"] += 1
            CheckpointStore(store, "j").verify(manifests[0])
            collect(store, "j", ONE)
            CheckpointStore(store, "j").verify(manifests[0])
        elif isinstance(started, Start):
            seen["newest"] += 1  # it was still whole when it was read
            assert started.manifest == manifests[1]
        else:
            seen["given up"] += 1
            assert isinstance(started, StoreUnavailable | CorruptCheckpoint), started
            assert states(store, [manifests[0]]) == []
    assert all(seen.values()), seen


def test_two_collectors_at_once_leave_what_one_would(tmp_path: Path) -> None:
    template = Memory()
    _, manifests = chain(template, tmp_path, steps=2)
    stores: list[Memory] = []

    def make() -> tuple[Gated, Any, Gated, Any]:
        store = Memory()
        store.objects = dict(template.objects)
        stores.append(store)
        one, two = Gated(store, _writes), Gated(store, _writes)
        return one, lambda: collect(one, "j", ONE), two, lambda: collect(two, "j", ONE)

    for results in every_order(make):
        store = stores.pop()
        assert all(isinstance(result, Collected) for result in results), results
        assert states(store, manifests) == [20]
        assert CheckpointStore(store, "j").newest() == manifests[1]
