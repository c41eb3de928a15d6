"""One suite for every object store: what `cluster.storage.base.ObjectStore` promises."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from cluster.storage import ObjectStore, open_store
from jobs.errors import AlreadyExistsError, ObjectNotFound, SpecError, StoreUnavailable
from tests.conformance.backends import Backend, keys

REPOSITORY = Path(__file__).resolve().parents[2]


def test_create_then_get_returns_the_bytes(store: ObjectStore) -> None:
    body = bytes(range(256)) * 3
    store.create("manifests/a.json", body)
    assert store.get("manifests/a.json") == body


def test_create_of_an_empty_body_is_kept(store: ObjectStore) -> None:
    store.create("empty", b"")
    assert store.get("empty") == b""
    assert store.list("")[0].size_bytes == 0


def test_create_on_a_taken_key_fails_and_changes_nothing(store: ObjectStore) -> None:
    store.create("k", b"first")
    with pytest.raises(AlreadyExistsError, match="k exists"):
        store.create("k", b"second")
    assert store.get("k") == b"first"


def test_create_retried_with_its_own_bytes_succeeds(backend: Backend) -> None:
    backend.open().create("k", b"nonce-1")
    backend.open().create("k", b"nonce-1")
    assert backend.open().get("k") == b"nonce-1"


def test_create_after_delete_succeeds(store: ObjectStore) -> None:
    store.create("k", b"first")
    store.delete("k")
    store.create("k", b"second")
    assert store.get("k") == b"second"


@pytest.mark.parametrize("backend", ["directory", "radosgw"], indirect=True)  # moto looks, then writes: no real server
def test_racing_creators_exactly_one_wins(backend: Backend) -> None:
    num_racers, num_rounds = 24, 3
    stores = [backend.open() for _ in range(6)]
    barrier = threading.Barrier(num_racers)

    def claim(racer: int, key: str) -> bool:
        barrier.wait(60)
        try:
            stores[racer % len(stores)].create(key, f"racer {racer}".encode())
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(num_racers) as pool:
        for turn in range(num_rounds):
            key = f"attempts/{turn:06d}"
            won = list(pool.map(claim, range(num_racers), [key] * num_racers))
            assert won.count(True) == 1
            assert stores[0].get(key) == f"racer {won.index(True)}".encode()


def test_missing_object_is_definitely_not_found(store: ObjectStore, tmp_path: Path) -> None:
    store.create("folder/k", b"x")
    for key in ("none", "folder", "folder/none", "none/k"):
        with pytest.raises(ObjectNotFound):
            store.get(key)
        with pytest.raises(ObjectNotFound):
            store.get_file(key, tmp_path / "target")


def test_list_shows_every_write_at_once_sorted_and_by_prefix(store: ObjectStore) -> None:
    assert store.list("") == []
    written = []
    for key in ("b/2", "a/1", "b/1", "ab", "b/c/d"):
        store.create(key, key.encode())
        written.append(key)
        assert keys(store) == sorted(written)
    assert keys(store, "b/") == ["b/1", "b/2", "b/c/d"]
    assert keys(store, "b/c") == ["b/c/d"]
    assert keys(store, "a") == ["a/1", "ab"]
    assert keys(store, "nothing/") == []


def test_list_of_more_than_one_page_is_complete(store: ObjectStore) -> None:
    expected = [f"manifests/{number:06d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.create(key, b"x"), expected))
    assert keys(store, "manifests/") == expected


def test_delete_is_idempotent(store: ObjectStore) -> None:
    store.create("k", b"x")
    store.delete("k")
    store.delete("k")
    store.delete("never/was")
    assert keys(store) == []


@pytest.mark.parametrize(
    "key", ["", "/k", "k/", "a//b", "..", "a/../b", "./k", ".tmp/x", "a\\b", "a b", "ä", "a" * 513, "a\n", "a\n/b"]
)
def test_key_that_is_none_is_refused_before_the_store_is_asked(store: ObjectStore, tmp_path: Path, key: str) -> None:
    with pytest.raises(SpecError):
        store.create(key, b"x")
    with pytest.raises(SpecError):
        store.get(key)
    with pytest.raises(SpecError):
        store.put_file(key, tmp_path)
    with pytest.raises(SpecError):
        store.delete(key)


def test_store_that_cannot_be_reached_is_unavailable_never_not_found(
    backend: Backend, store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"blob")
    store.create("k", b"x")
    with backend.outage():
        for operation in (
            lambda: store.get("k"),
            lambda: store.get("none"),
            lambda: store.get_file("none", tmp_path / "target"),
            lambda: store.list(""),
            lambda: store.create("new", b"x"),
            lambda: store.put_file("objects/new", tmp_path / "f"),
            lambda: store.delete("k"),
        ):
            with pytest.raises(StoreUnavailable):
                operation()
    assert store.get("k") == b"x"
    assert keys(store) == ["k"]


@pytest.mark.parametrize("backend", ["radosgw"], indirect=True)  # a directory has none, moto accepts any
def test_wrong_credentials_are_unavailable_and_not_shown(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.open().create("k", b"x")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "wrong-and-private")
        for key in ("k", "none"):
            with pytest.raises(StoreUnavailable, match="AWS_PROFILE") as caught:
                backend.open().get(key)
            assert "wrong-and-private" not in str(caught.value)


@pytest.mark.parametrize("backend", ["moto", "radosgw"], indirect=True)
def test_wrong_bucket_is_unavailable(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"blob")
    store = open_store("s3://no-such-bucket-here/jobs")
    for operation in (
        lambda: store.get("k"),
        lambda: store.list(""),
        lambda: store.create("k", b"x"),
        lambda: store.put_file("objects/k", tmp_path / "f"),
    ):
        with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
            operation()


def test_two_prefixes_do_not_see_each_other(backend: Backend) -> None:
    one, other = backend.open(), open_store(f"{backend.uri}x")
    one.create("k", b"one")
    assert keys(other) == []
    other.create("k", b"other")
    assert one.get("k") == b"one"


def test_allotted_create_finds_what_is_there_before_and_after(backend: Backend) -> None:
    store = open_store(backend.uri, "allotted")
    assert (store.protocol, backend.open().protocol) == ("allotted", "create-only")
    store.create("k", b"first")
    store.create("k", b"first")  # a retry after a lost reply
    with pytest.raises(AlreadyExistsError, match="k exists"):
        store.create("k", b"second")
    assert store.get("k") == b"first"


def test_allotted_create_that_is_overwritten_at_once_is_told(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, other = open_store(backend.uri, "allotted"), backend.open()
    (tmp_path / "theirs").write_bytes(b"theirs")
    seen = store.get

    def get(key: str) -> bytes:
        try:
            return seen(key)
        finally:
            monkeypatch.setattr(store, "get", seen_after_theirs)

    def seen_after_theirs(key: str) -> bytes:
        other.put_file(key, tmp_path / "theirs")
        return seen(key)

    monkeypatch.setattr(store, "get", get)
    with pytest.raises(AlreadyExistsError):
        store.create("k", b"mine")


@pytest.mark.parametrize("backend", ["radosgw"], indirect=True)
def test_bucket_of_somebody_else_is_no_permission(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore import UNSIGNED
    from botocore.config import Config

    store = backend.open()
    store.create("k", b"x")
    stranger = backend.open()
    stranger.client = boto3.session.Session().client("s3", config=Config(signature_version=UNSIGNED))  # type: ignore[attr-defined]
    for operation in (lambda: stranger.get("k"), lambda: stranger.create("n", b"x"), lambda: stranger.list("")):
        with pytest.raises(StoreUnavailable, match=r"AccessDenied.*bucket's policy"):
            operation()
