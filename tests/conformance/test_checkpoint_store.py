"""What `CheckpointStore` promises, on every object store: commit, verify, resume, quarantine, fence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectStore
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.seal import seal
from jobs.chain import pin_name
from jobs.errors import (
    AlreadyExistsError,
    CorruptCheckpoint,
    FencedError,
    ObjectNotFound,
    SpecError,
    StoreUnavailable,
    UnknownManifest,
)
from jobs.manifest import Manifest
from tests.conformance.backends import Backend
from tests.support.stores import Failing

Commit = Callable[..., Manifest]
ATOMIC = ["directory", "radosgw"]  # moto looks whether the key is there, then writes: races prove nothing on it


@pytest.fixture
def commit(tmp_path: Path) -> Commit:
    """Commits (attempt, step) with two files of content of their own; any argument may be overridden."""

    def make(
        checkpoints: CheckpointStore, attempt: int, step: int, parent: Manifest | None, **overrides: Any
    ) -> Manifest:
        files = {}
        for name in ("model.safetensors", "state.json"):
            path = tmp_path / f"{attempt}-{step}-{name}"
            path.write_bytes(f"{name} of {attempt}, {step}. ".encode() * 50)
            files[name] = path
        arguments: dict[str, Any] = {
            "attempt": attempt,
            "step": step,
            "epoch": step // 100,
            "samples": step * 64,
            "parent": parent.name if parent else None,
            "files": files,
            "config_sha256": "c" * 64,
            "world_size": 2,
            "seed": 1,
            "cpus": (0, 1),
            "code": {"version": "0.1.0"},
            "versions": {"python": "3.11"},
            "metrics": {"top1": 0.5},
        }
        return checkpoints.commit(**{**arguments, **overrides})

    return make


def rewrite(store: ObjectStore, key: str, body: bytes, folder: Path) -> None:
    """Put other bytes under an existing key, as a fault would."""
    (folder / "tampered").write_bytes(body)
    store.put_file(key, folder / "tampered")


def quarantined(store: ObjectStore) -> list[str]:
    return [info.key for info in store.list("quarantine/")]


def test_first_attempt_of_an_empty_store_starts_from_nothing(store: ObjectStore) -> None:
    start = CheckpointStore(store, "j").start_attempt(1)
    assert (start.attempt, start.manifest, start.quarantined) == (1, None, ())
    assert [info.key for info in store.list("")] == [pin_name(1)]


def test_committed_checkpoint_is_resumed_and_its_files_come_back(
    backend: Backend, commit: Commit, tmp_path: Path
) -> None:
    writer = CheckpointStore(backend.open(), "j")
    writer.start_attempt(1)
    first = commit(writer, 1, 10, None)
    second = commit(writer, 1, 20, first)
    reader = CheckpointStore(backend.open(), "j")
    start = reader.start_attempt(2, must_resume=second.name)
    assert (start.attempt, start.manifest, start.quarantined) == (2, second, ())
    reader.fetch(second, "model.safetensors", tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == b"model.safetensors of 1, 20. " * 50
    assert reader.read(second, "state.json") == b"state.json of 1, 20. " * 50
    assert reader.history(second) == [second, first]
    assert reader.load(first.name) == first
    assert reader.newest() == second
    assert CheckpointStore(backend.open(), "j").pinned(2) == start


def test_manifest_says_what_was_committed(store: ObjectStore, commit: Commit) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    manifest = commit(writer, 1, 10, None)
    assert (manifest.job, manifest.attempt, manifest.step, manifest.samples) == ("j", 1, 10, 640)
    assert manifest.sha256().encode() in store.get(manifest.name)
    for entry in manifest.files:
        assert len(store.get(entry.key)) == entry.size_bytes


def flip(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def truncate(body: bytes) -> bytes:
    return body[:-1]


@pytest.mark.parametrize("damage", [flip, truncate, None], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("part", ["file", "manifest"])
def test_damaged_checkpoint_is_quarantined_and_the_one_before_used(
    store: ObjectStore, commit: Commit, tmp_path: Path, damage: Callable[[bytes], bytes] | None, part: str
) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    first = commit(writer, 1, 10, None)
    second = commit(writer, 1, 20, first)
    key = second.name if part == "manifest" else second.files[0].key
    if damage is None:
        store.delete(key)
    else:
        rewrite(store, key, damage(store.get(key)), tmp_path)
    if not (part == "manifest" and damage is None):
        assert CheckpointStore(store, "j").newest() == first
    assert quarantined(store) == []  # looking does not write
    start = CheckpointStore(store, "j").start_attempt(2, must_resume=second.name)
    assert start.manifest == first
    assert [item.manifest for item in start.quarantined] == [second.name]
    assert start.quarantined[0].reason
    assert quarantined(store) == ["quarantine/000001-000000020.000002.json"]
    assert CheckpointStore(store, "j").pinned(2) == start


def test_every_flipped_bit_of_a_manifest_and_a_pin_is_seen(store: ObjectStore, commit: Commit, tmp_path: Path) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    manifest = commit(writer, 1, 10, None)
    whole, pin = store.get(manifest.name), store.get(pin_name(1))
    for at in range(0, len(whole), 37):
        rewrite(store, manifest.name, whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :], tmp_path)
        with pytest.raises(CorruptCheckpoint):
            writer.load(manifest.name)
    for at in range(0, len(pin), 23):
        rewrite(store, pin_name(1), pin[:at] + bytes([pin[at] ^ (1 << at % 8)]) + pin[at + 1 :], tmp_path)
        with pytest.raises(CorruptCheckpoint):
            CheckpointStore(store, "j").pinned(1)


def test_damage_in_the_middle_of_the_chain_does_not_cut_off_what_is_below(
    store: ObjectStore, commit: Commit, tmp_path: Path
) -> None:
    one = CheckpointStore(store, "j")
    one.start_attempt(1)
    first = commit(one, 1, 10, None)
    second = commit(one, 1, 20, first)
    two = CheckpointStore(store, "j")
    assert two.start_attempt(2).manifest == second
    third = commit(two, 2, 30, second)
    rewrite(store, third.name, b"{}", tmp_path)
    store.delete(second.name)
    start = CheckpointStore(store, "j").start_attempt(3, must_resume=third.name)
    assert start.manifest == first
    assert third.name in [item.manifest for item in start.quarantined]
    again = CheckpointStore(store, "j").start_attempt(4)
    assert again.manifest == first


@pytest.mark.parametrize("must_resume", [True, False])
def test_job_that_has_committed_never_starts_from_zero(store: ObjectStore, commit: Commit, must_resume: bool) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    manifest = commit(writer, 1, 10, None)
    store.delete(manifest.files[0].key)
    with pytest.raises(CorruptCheckpoint, match="not started from zero"):
        CheckpointStore(store, "j").start_attempt(2, must_resume=manifest.name if must_resume else None)
    assert [info.key for info in store.list("attempts/")] == [pin_name(1)]
    assert quarantined(store) == ["quarantine/000001-000000010.000002.json"]


def test_must_resume_on_a_store_without_manifests_refuses(store: ObjectStore) -> None:
    CheckpointStore(store, "j").start_attempt(1)
    with pytest.raises(CorruptCheckpoint, match="not started from zero"):
        CheckpointStore(store, "j").start_attempt(2, must_resume="manifests/000001-000000010.json")
    assert [info.key for info in store.list("attempts/")] == [pin_name(1)]


def test_checkpoint_of_another_job_is_not_resumed(store: ObjectStore, commit: Commit) -> None:
    writer = CheckpointStore(store, "other")
    writer.start_attempt(1)
    commit(writer, 1, 10, None)
    with pytest.raises(CorruptCheckpoint, match="belongs to job other"):
        CheckpointStore(store, "j").start_attempt(2)


@pytest.mark.parametrize(
    ("operation", "prefix"),
    [
        ("list", "attempts/"),
        ("list", "manifests/"),
        ("get", "attempts/"),
        ("get", "manifests/"),
        ("get_file", "objects/"),
        ("create", "attempts/"),
    ],
)
def test_not_knowing_quarantines_and_pins_nothing(
    store: ObjectStore, commit: Commit, operation: str, prefix: str
) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    manifest = commit(writer, 1, 10, None)
    before = store.list("")
    unknown = CheckpointStore(Failing(store, operation, prefix), "j")
    with pytest.raises(StoreUnavailable, match="timed out"):
        unknown.start_attempt(2, must_resume=manifest.name)
    assert store.list("") == before
    assert CheckpointStore(store, "j").start_attempt(2).manifest == manifest


def test_not_knowing_below_a_damaged_one_leaves_no_trace(store: ObjectStore, commit: Commit) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    first = commit(writer, 1, 10, None)
    second = commit(writer, 1, 20, first)
    store.delete(second.files[0].key)
    before = store.list("")
    with pytest.raises(StoreUnavailable):
        CheckpointStore(Failing(store, "get_file", first.files[0].key), "j").start_attempt(2)
    assert store.list("") == before


def test_outage_in_the_middle_of_a_chain_changes_nothing(backend: Backend, commit: Commit) -> None:
    store = backend.open()
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    manifest = commit(writer, 1, 10, None)
    before = store.list("")
    starter = CheckpointStore(backend.open(), "j")
    if backend.server is None:
        starter.newest()  # a directory that vanishes before it was ever seen is an empty one
    with backend.outage():
        with pytest.raises(StoreUnavailable):
            starter.start_attempt(2)
        with pytest.raises(StoreUnavailable):
            commit(writer, 1, 20, manifest)
    assert store.list("") == before
    commit(writer, 1, 20, manifest)
    assert starter.start_attempt(2).manifest == writer.newest()


def test_manifest_of_a_newer_version_is_refused_and_never_quarantined(
    store: ObjectStore, commit: Commit, tmp_path: Path
) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    manifest = commit(writer, 1, 10, None)
    for body in (seal({"version": 2, "new": True}), b'{"version": 2, "sealed": "otherwise"}'):
        rewrite(store, manifest.name, body, tmp_path)
        with pytest.raises(UnknownManifest, match="version 2"):
            CheckpointStore(store, "j").start_attempt(2)
    assert quarantined(store) == []
    assert [info.key for info in store.list("attempts/")] == [pin_name(1)]


def test_zombies_commit_after_a_newer_pin_is_refused(store: ObjectStore, commit: Commit) -> None:
    zombie = CheckpointStore(store, "j")
    zombie.start_attempt(1)
    first = commit(zombie, 1, 10, None)
    CheckpointStore(store, "j").start_attempt(2)
    before = store.list("")
    with pytest.raises(FencedError, match="attempt 1 must not write, attempt 2 is pinned"):
        commit(zombie, 1, 20, first)
    assert store.list("") == before


class PinnedMeanwhile(Failing):
    """Another attempt is pinned at the worst moment: after the zombie's last look, before its manifest lands."""

    def __init__(self, store: ObjectStore, steal: Callable[[], object]) -> None:
        super().__init__(store, "none", "none")
        self._steal = steal

    def create(self, key: str, body: bytes) -> None:
        if key.startswith("manifests/"):
            self._steal()
        super().create(key, body)


def test_zombies_commit_that_slips_past_the_fence_never_becomes_live(store: ObjectStore, commit: Commit) -> None:
    successor = CheckpointStore(store, "j")
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    first = commit(writer, 1, 10, None)
    zombie = CheckpointStore(PinnedMeanwhile(store, lambda: successor.start_attempt(2)), "j")
    dead = commit(zombie, 1, 500, first)
    assert [(item.name, item.live) for item in successor.manifests()] == [(dead.name, False), (first.name, True)]
    assert successor.newest() == first
    assert CheckpointStore(store, "j").start_attempt(3, must_resume=dead.name).manifest == first


def test_fence_is_checked_before_the_upload(store: ObjectStore, commit: Commit) -> None:
    writer = CheckpointStore(Failing(store, "put_file", ""), "j")
    writer.start_attempt(1)
    CheckpointStore(store, "j").start_attempt(2)
    with pytest.raises(FencedError):
        commit(writer, 1, 10, None)


def test_commit_of_an_attempt_that_never_started_is_refused(store: ObjectStore, commit: Commit) -> None:
    with pytest.raises(FencedError, match="not pinned"):
        commit(CheckpointStore(store, "j"), 1, 10, None)
    assert store.list("") == []


def test_commit_on_a_parent_that_is_not_its_own_is_refused(store: ObjectStore, commit: Commit) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    first = commit(writer, 1, 10, None)
    second = commit(writer, 1, 20, first)
    writer.start_attempt(2)
    for parent in (first, None):
        with pytest.raises(SpecError, match="cannot continue"):
            commit(writer, 2, 30, parent)
    commit(writer, 2, 30, second)


def test_start_with_a_number_that_is_not_above_all_pinned_is_fenced(store: ObjectStore) -> None:
    CheckpointStore(store, "j").start_attempt(3)
    for number in (1, 2, 3):
        with pytest.raises(FencedError):
            CheckpointStore(store, "j").start_attempt(number)
    assert [info.key for info in store.list("attempts/")] == [pin_name(3)]
    with pytest.raises(SpecError):
        CheckpointStore(store, "j").start_attempt(0)


class LosesReplies(Failing):
    """Every create reaches the store, and its reply does not reach us, once."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, "none", "none")
        self._lost: set[str] = set()

    def create(self, key: str, body: bytes) -> None:
        super().create(key, body)
        if key not in self._lost:
            self._lost.add(key)
            raise StoreUnavailable(f"create {key}: reply lost")


def test_start_and_commit_retried_after_a_lost_reply_succeed(store: ObjectStore, commit: Commit) -> None:
    writer = CheckpointStore(LosesReplies(store), "j")
    with pytest.raises(StoreUnavailable):
        writer.start_attempt(1)
    assert writer.start_attempt(1).attempt == 1
    with pytest.raises(StoreUnavailable):
        commit(writer, 1, 10, None)
    manifest = commit(writer, 1, 10, None)
    assert CheckpointStore(store, "j").newest() == manifest


def test_own_start_retried_after_a_newer_pin_is_fenced(store: ObjectStore) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    CheckpointStore(store, "j").start_attempt(2)
    with pytest.raises(FencedError):
        writer.start_attempt(1)


def test_second_writer_of_the_same_attempt_and_step_learns_who_was_first(store: ObjectStore, commit: Commit) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    first = commit(writer, 1, 10, None)
    with pytest.raises(AlreadyExistsError, match=f"nonce {first.nonce}"):
        commit(CheckpointStore(store, "j"), 1, 10, None)
    assert CheckpointStore(store, "j").load(first.name) == first


@pytest.mark.parametrize("backend", ATOMIC, indirect=True)
def test_racing_bare_starts_get_numbers_of_their_own(backend: Backend) -> None:
    num_racers = 8
    barrier = threading.Barrier(num_racers)
    starters = [CheckpointStore(backend.open(), "j") for _ in range(num_racers)]

    def start(starter: CheckpointStore) -> int | None:
        barrier.wait(60)
        try:
            return starter.start_attempt(None).attempt
        except FencedError:
            return None  # pinned, and overtaken before it could begin

    with ThreadPoolExecutor(num_racers) as pool:
        allotted = [number for number in pool.map(start, starters) if number is not None]
    assert len(set(allotted)) == len(allotted)
    assert num_racers in allotted  # the newest goes on
    assert [info.key for info in backend.open().list("attempts/")] == [pin_name(n) for n in range(1, num_racers + 1)]


@pytest.mark.parametrize("backend", ATOMIC, indirect=True)
def test_racing_starts_of_one_attempt_exactly_one_wins(backend: Backend) -> None:
    num_racers = 24
    barrier = threading.Barrier(num_racers)
    stores = [backend.open() for _ in range(4)]

    def start(racer: int) -> bool:
        starter = CheckpointStore(stores[racer % len(stores)], "j")
        barrier.wait(60)
        try:
            starter.start_attempt(7)
        except FencedError:
            return False
        return True

    with ThreadPoolExecutor(num_racers) as pool:
        assert list(pool.map(start, range(num_racers))).count(True) == 1


def test_pinned_before_the_start_is_not_found(store: ObjectStore) -> None:
    with pytest.raises(ObjectNotFound):
        CheckpointStore(store, "j").pinned(1)


def test_fetch_of_damaged_content_leaves_the_target_alone(store: ObjectStore, commit: Commit, tmp_path: Path) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    manifest = commit(writer, 1, 10, None)
    entry = manifest.files[0]
    key = entry.key
    rewrite(store, key, flip(store.get(key)), tmp_path)
    folder = tmp_path / "download"
    folder.mkdir()
    (folder / "model").write_bytes(b"mine")
    for _ in range(2):
        with pytest.raises(CorruptCheckpoint):
            writer.fetch(manifest, entry.name, folder / "model")
        with pytest.raises(CorruptCheckpoint):
            writer.read(manifest, entry.name)
        store.delete(key)
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("model", b"mine")]


def test_content_is_shared_with_the_parent_alone(store: ObjectStore, commit: Commit, tmp_path: Path) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    (tmp_path / "same").write_bytes(b"frozen layer" * 100)
    (tmp_path / "other").write_bytes(b"other layer" * 100)
    first = commit(writer, 1, 10, None, files={"m": tmp_path / "same"})
    second = commit(writer, 1, 20, first, files={"m": tmp_path / "same"})
    third = commit(writer, 1, 30, second, files={"m": tmp_path / "other"})
    fourth = commit(writer, 1, 40, third, files={"m": tmp_path / "same"})
    assert second.files == first.files and fourth.files[0].key != first.files[0].key
    rewrite(store, first.files[0].key, b"damaged", tmp_path)
    for damaged in (first, second):
        with pytest.raises(CorruptCheckpoint):
            writer.verify(damaged)
    writer.verify(fourth)  # damage does not spread to what does not continue it
    successor = CheckpointStore(store, "j")
    assert successor.start_attempt(2).manifest == fourth
    assert commit(successor, 2, 50, fourth, files={"m": tmp_path / "same"}).files == fourth.files


def test_attempts_tell_when_each_began_and_committed_last(store: ObjectStore, commit: Commit) -> None:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    last = commit(writer, 1, 20, commit(writer, 1, 10, None))
    successor = CheckpointStore(store, "j")
    successor.start_attempt(2)
    one, two = successor.attempts()
    assert (one.attempt, one.last_commit_at) == (1, last.created_at) and one.started_at <= last.created_at
    assert (two.attempt, two.last_commit_at) == (2, None)
