"""One suite for every object store: what `cluster.storage.base.ObjectStore` promises."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.storage import ObjectStore, open_store
from jobs.errors import AlreadyExistsError, ObjectNotFound, SpecError, StoreUnavailable
from tests.conformance.backends import Backend

REPOSITORY = Path(__file__).resolve().parents[2]


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


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


@pytest.mark.parametrize("size_bytes", [0, 1, 8 << 20, (8 << 20) + 1, (33 << 20) + 7])
def test_put_file_then_get_file_returns_the_bytes(store: ObjectStore, tmp_path: Path, size_bytes: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random.Random(size_bytes).randbytes(size_bytes))
    store.put_file("objects/blob", source)
    store.get_file("objects/blob", target)
    assert target.read_bytes() == source.read_bytes()
    assert [(info.key, info.size_bytes) for info in store.list("objects/")] == [("objects/blob", size_bytes)]


def test_put_file_replaces_what_is_there(store: ObjectStore, tmp_path: Path) -> None:
    for content in (b"long old content", b"new"):
        (tmp_path / "f").write_bytes(content)
        store.put_file("objects/blob", tmp_path / "f")
    assert store.get("objects/blob") == b"new"


def test_put_file_of_a_missing_file_is_the_callers_error(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put_file("objects/blob", tmp_path / "none")
    assert keys(store) == []


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
    "key", ["", "/k", "k/", "a//b", "..", "a/../b", "./k", ".tmp/x", "a\\b", "a b", "ä", "a" * 513]
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


WRITER = """
import os, signal, sys
sys.path.insert(0, {repository!r})
from pathlib import Path
from cluster.storage import open_store

point, when = int(sys.argv[1]), sys.argv[2]
count = 0

def counted(call):
    def wrapped(*args, **kwargs):
        global count
        count += 1
        if count == point and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        here = count
        try:
            return call(*args, **kwargs)
        finally:
            if here == point and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
    return wrapped

for name in ("fsync", "link", "replace", "unlink", "mkdir", "open"):
    setattr(os, name, counted(getattr(os, name)))
store = open_store(sys.argv[3])
store.put_file("objects/blob", Path(sys.argv[4]))
store.create("manifests/new", b"new" * 5000)
"""


def test_directory_writer_killed_at_any_point_leaves_old_or_new_whole(tmp_path: Path) -> None:
    old, new = b"old" * 100_000, b"new" * 100_000
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    outcomes = set()
    for point in range(1, 100):
        codes = set()
        for when in ("before", "after"):
            root = tmp_path / f"store-{point}-{when}"
            store = open_store(f"file://{root}")
            store.put_file("objects/blob", tmp_path / "old")
            command = [sys.executable, "-c", WRITER.format(repository=str(REPOSITORY)), str(point), when]
            done = subprocess.run([*command, store.uri, str(tmp_path / "new")], timeout=60, check=False)
            codes.add(done.returncode)
            blob, listed = store.get("objects/blob"), keys(store)
            assert blob in (old, new)
            assert listed in (["objects/blob"], ["manifests/new", "objects/blob"])
            if "manifests/new" in listed:
                assert (blob, store.get("manifests/new")) == (new, b"new" * 5000)
            outcomes.add((blob == new, "manifests/new" in listed))
            store.create("manifests/new", b"new" * 5000)  # the retry of the same writer ends well from anywhere
        if codes == {0}:
            break
        assert codes == {-signal.SIGKILL}
    else:
        pytest.fail("the writer has more system calls than the test has points")
    assert outcomes == {(False, False), (True, False), (True, True)}


def test_directory_reader_beside_a_writer_that_is_killed_sees_whole_objects(tmp_path: Path) -> None:
    contents = [bytes([letter]) * 3_000_000 for letter in b"ab"]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    store = open_store(f"file://{tmp_path / 'store'}")
    store.put_file("objects/blob", tmp_path / "0")
    endless = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from pathlib import Path\nfrom cluster.storage import open_store\n"
        "store = open_store(sys.argv[1])\nturn = 0\n"
        "while True:\n"
        "    turn += 1\n"
        "    store.put_file('objects/blob', Path(sys.argv[2]) / str(turn % 2))\n"
        "    print(turn, flush=True)\n"
    )
    seeded = random.Random(7)
    for _ in range(5):
        command = [sys.executable, "-c", endless, store.uri, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(seeded.randrange(1, 6)):
                writer.stdout.readline()
                assert store.get("objects/blob") in contents
            writer.kill()
        assert store.get("objects/blob") in contents
        assert keys(store) == ["objects/blob"]


def test_directory_content_is_on_disk_before_its_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "link", "replace"):

        def recorded(*args: object, _name: str = name, _call: object = getattr(os, name), **kwargs: object) -> object:
            calls.append(_name)
            return _call(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(os, name, recorded)
    store = open_store(f"file://{tmp_path / 'store'}")
    store.create("a/k", b"x")
    (tmp_path / "f").write_bytes(b"y")
    store.put_file("a/f", tmp_path / "f")
    for naming in ("link", "replace"):
        at = calls.index(naming)
        assert calls[at - 1] == "fsync" and calls[at + 1] == "fsync"


def test_directory_full_disk_is_unavailable_with_a_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"file://{tmp_path / 'store'}")
    store.create("k", b"x")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnavailable, match="the disk is full"):
        store.create("k2", b"x")
    monkeypatch.undo()
    assert keys(store) == ["k"]
    assert [path.name for path in (tmp_path / "store" / ".tmp").iterdir()] == []
