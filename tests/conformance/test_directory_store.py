"""The store in a directory: writers that are killed anywhere, and readers beside them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import open_store
from jobs.errors import StoreUnavailable
from tests.conformance.backends import keys

REPOSITORY = Path(__file__).resolve().parents[2]


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
