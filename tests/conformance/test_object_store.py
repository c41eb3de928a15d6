"""One suite for every object store: what `cluster.storage.base.ObjectStore` promises."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from cluster.storage import ObjectStore, digest_file, open_store
from cluster.storage.digests import PART_BYTES
from jobs.errors import AlreadyExistsError, ObjectNotFound, SpecError, StoreUnavailable
from tests.conformance.backends import Backend
from tests.support.proxies import BreakingLine

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


def test_digests_that_are_given_are_used_and_not_computed_again(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes((17 << 20) + 3))
    digests = digest_file(source)

    def hashed_again(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr("cluster.storage.s3.digest_file", hashed_again)
    store.put_file("objects/blob", source, digests)
    assert store.get_file("objects/blob", tmp_path / "target") == digests.sha256


@pytest.mark.parametrize("backend", ["radosgw"], indirect=True)  # moto accepts any checksum
@pytest.mark.parametrize("size_bytes", [1000, 17 << 20])
def test_file_altered_after_it_was_hashed_is_refused_and_leaves_nothing(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr("cluster.storage.s3_transfer._NUM_TRIES", 2)
    source = tmp_path / "source"
    source.write_bytes(bytes(size_bytes))
    digests = digest_file(source)
    source.write_bytes(bytes(size_bytes - 1) + b"x")
    with pytest.raises(StoreUnavailable, match="XAmzContentSHA256Mismatch"):
        store.put_file("objects/blob", source, digests)
    assert (keys(store), store.leftovers("")) == ([], [])


@pytest.mark.parametrize("backend", ["directory"], indirect=True)
def test_directory_file_altered_after_it_was_hashed_is_refused_and_leaves_nothing(
    store: ObjectStore, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(3 << 20))
    digests = digest_file(source)
    source.write_bytes(bytes((3 << 20) - 1) + b"x")
    with pytest.raises(StoreUnavailable, match="altered while it was written"):
        store.put_file("objects/blob", source, digests)
    assert (keys(store), store.leftovers("")) == ([], [])


def test_file_that_grew_or_shrank_after_it_was_hashed_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"hashed")
    digests = digest_file(source)
    for body in (b"hashed and longer", b"h"):
        source.write_bytes(body)
        with pytest.raises(StoreUnavailable):
            store.put_file("objects/blob", source, digests)


def test_get_file_tells_the_digest_of_what_it_wrote(store: ObjectStore, tmp_path: Path) -> None:
    for size_bytes in (0, 1, (16 << 20) + 1, 50 << 20):
        body = random.Random(size_bytes).randbytes(size_bytes)
        (tmp_path / "source").write_bytes(body)
        store.put_file("objects/blob", tmp_path / "source")
        assert store.get_file("objects/blob", tmp_path / "target") == hashlib.sha256(body).hexdigest()


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


STOPPED = """
import os, signal, sys
sys.path.insert(0, {repository!r})
from pathlib import Path
from cluster.storage import open_store

store = open_store(sys.argv[1])
if sys.argv[1].startswith("s3:"):
    send = store.client.upload_part
    def upload_part(**words):
        if words["PartNumber"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return send(**words)
    store.client.upload_part = upload_part
else:
    os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
store.put_file(sys.argv[2], Path(sys.argv[3]))
"""


def test_killed_writer_leaves_what_leftovers_finds_and_discard_removes(backend: Backend, tmp_path: Path) -> None:
    store = backend.open()
    source = tmp_path / "source"
    source.write_bytes(bytes(33 << 20))
    written = ("objects/ab", "objects/cd", "/".join(["x" * 120] * 4))
    for key in written:
        command = [sys.executable, "-c", STOPPED.format(repository=str(REPOSITORY)), store.uri, key, str(source)]
        assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert keys(store) == []
    found = store.leftovers("")
    assert [leftover.key for leftover in found] == sorted(written)
    assert [leftover.key for leftover in store.leftovers("objects/c")] == ["objects/cd"]
    assert {leftover.size_bytes for leftover in found} <= {None, 33 << 20}
    store.put_file("objects/ab", source)
    store.discard(found[0])
    store.discard(found[0])
    assert store.leftovers("") == found[1:]
    assert keys(store) == ["objects/ab"]
    for leftover in found[1:]:
        store.discard(leftover)
    assert store.leftovers("") == []


def test_finished_and_failed_writes_leave_nothing_over(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(17 << 20))
    store.put_file("objects/blob", tmp_path / "f")
    store.create("k", b"x")
    with pytest.raises(AlreadyExistsError):
        store.create("k", b"y")
    assert store.leftovers("") == []


@pytest.mark.parametrize("backend", ["radosgw"], indirect=True)
def test_upload_over_a_breaking_line_sends_again_only_what_was_not_through(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.server is not None
    body = random.Random(2).randbytes(100 << 20)
    (tmp_path / "source").write_bytes(body)
    digests = digest_file(tmp_path / "source")
    with BreakingLine(backend.server.endpoint) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", line.endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the tries are ours
        line.cuts_up = [5 << 20, 9 << 20, 14 << 20]
        backend.open().put_file("objects/blob", tmp_path / "source", digests)
    assert line.cuts_made == 3
    assert set(line.parts_begun) == set(range(1, 8))
    assert sum(line.parts_begun.values()) == 7 + 3
    monkeypatch.setenv("AWS_ENDPOINT_URL", backend.server.endpoint)
    assert backend.open().get_file("objects/blob", tmp_path / "target") == digests.sha256
    assert backend.open().leftovers("") == []


@pytest.mark.parametrize("backend", ["radosgw"], indirect=True)
def test_download_over_a_breaking_line_goes_on_where_it_stopped(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.server is not None
    body = random.Random(3).randbytes(50 << 20)
    (tmp_path / "source").write_bytes(body)
    backend.open().put_file("objects/blob", tmp_path / "source")
    with BreakingLine(backend.server.endpoint) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", line.endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        line.cuts_down = [3 << 20, 7 << 20, 10 << 20]
        store = backend.open()
        ranges: list[str] = []
        store.client.meta.events.register(  # type: ignore[attr-defined]
            "before-send.s3.GetObject", lambda request, **_: ranges.append(request.headers["Range"].decode())
        )
        assert store.get_file("objects/blob", tmp_path / "target") == hashlib.sha256(body).hexdigest()
    assert line.cuts_made == 3
    starts = sorted(int(wanted.removeprefix("bytes=").partition("-")[0]) for wanted in ranges)
    assert len(starts) == 4 + 3
    assert len([start for start in starts if start % (16 << 20)]) == 3  # in the middle of a part


HUNGRY = """
import resource, sys
sys.path.insert(0, {repository!r})
from pathlib import Path
from cluster.storage import digest_file, open_store

store = open_store(sys.argv[1])
source, target = Path(sys.argv[2]), Path(sys.argv[3])
small = source.with_name("small")
small.write_bytes(b"x")
store.put_file("objects/small", small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
digests = digest_file(source)
store.put_file("objects/blob", source, digests)
assert store.get_file("objects/blob", target) == digests.sha256
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("backend", ["directory", "radosgw"], indirect=True)
def test_memory_of_a_transfer_is_a_few_parts_whatever_its_size(backend: Backend, tmp_path: Path) -> None:
    with (tmp_path / "source").open("wb") as file:
        for number in range(320):
            file.write(random.Random(number).randbytes(1 << 20))
    command = [sys.executable, "-c", HUNGRY.format(repository=str(REPOSITORY)), backend.uri]
    done = subprocess.run(
        [*command, str(tmp_path / "source"), str(tmp_path / "target")],
        timeout=120, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert int(done.stdout) * 1024 < 8 * PART_BYTES  # four parts on the way, or six in hashing; some slack


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"not run: a small disk has to be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_said_and_leaves_nothing(store: ObjectStore, small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(4 << 20))
    full = open_store(f"file://{small_disk}/objects")
    with pytest.raises(StoreUnavailable, match=r"ENOSPC.*disk is full"):
        full.put_file("objects/blob", tmp_path / "f")
    assert (full.list(""), full.leftovers("")) == ([], [])
    store.put_file("objects/blob", tmp_path / "f")
    with pytest.raises(StoreUnavailable, match="disk is full"):
        store.get_file("objects/blob", small_disk / "target")


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
