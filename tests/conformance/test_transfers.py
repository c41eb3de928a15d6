"""Whole files to and from every object store: over broken lines, full disks and kills."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.storage import ObjectStore, digest_file, open_store
from cluster.storage.digests import PART_BYTES
from jobs.errors import AlreadyExistsError, StoreUnavailable
from tests.conformance.backends import Backend, keys
from tests.support.proxies import BreakingLine

REPOSITORY = Path(__file__).resolve().parents[2]


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
        timeout=600, check=True, capture_output=True, text=True,
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
