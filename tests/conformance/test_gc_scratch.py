"""What killed probes, doctors and uploads leave is collected; and nobody at work is harmed by a collection."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectStore
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.gc import Collected, collect
from cluster.storage.doctor import examine
from cluster.storage.probe import probe
from jobs.errors import ObjectNotFound, StoreUnavailable
from jobs.manifest import Manifest
from jobs.retention import Retention
from tests.conformance.backends import Backend
from tests.support.chains import committed, make_commit
from tests.support.interleave import Gated, every_order
from tests.support.stores import Failing, Memory, Wrapped

REPOSITORY = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cluster.storage import open_store
from cluster.storage.doctor import examine
from cluster.storage.probe import probe

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

_, _, kind, uri, source = sys.argv
store = open_store(uri)
if kind == "probe":
    store.get = die
    probe(store)
if uri.startswith("s3:"):
    store.client.complete_multipart_upload = die
elif kind == "doctor":
    os.link = die
else:
    os.replace = die
examine(store) if kind == "doctor" else store.put_file("graphs/0123-0", Path(source))
"""


def killed(backend: Backend, kind: str, source: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(REPOSITORY), kind, backend.uri, str(source)]
    env = {**os.environ, "TMPDIR": str(source.parent)}  # a killed doctor leaves a folder there, too
    assert subprocess.run(command, timeout=120, check=False, env=env).returncode == -signal.SIGKILL


def chain(store: ObjectStore, folder: Path, steps: list[int]) -> list[Manifest]:
    writer = CheckpointStore(store, "j")
    writer.start_attempt(1)
    return committed(writer, folder, 1, steps, None)


def folders(keys: list[str]) -> set[str]:
    return {key.partition("/")[0] for key in keys}


def test_what_killed_probes_doctors_and_uploads_left_is_found_and_deleted(backend: Backend, tmp_path: Path) -> None:
    store = backend.open()
    manifest = chain(store, tmp_path, [10])[0]
    (tmp_path / "graph").write_bytes(bytes(17 << 20))
    store.put_file("graphs/4567-0", tmp_path / "graph")
    before = store.list("")
    for kind in ("probe", "doctor", "graphs"):
        killed(backend, kind, tmp_path / "graph")
    assert folders([info.key for info in store.list("")]) >= {"probe", "doctor"}
    assert folders([left.key for left in store.leftovers("")]) == {"doctor", "graphs"}
    told = collect(store, "j", Retention(), dry_run=True)
    done = collect(store, "j", Retention())
    assert folders([info.key for info in done.objects]) == {"probe", "doctor"}
    assert (told.objects, told.leftovers) == (done.objects, done.leftovers)
    assert store.list("") == before
    assert [left.key for left in store.leftovers("")] == ["graphs/0123-0"] and done.unsettled == 1
    done = collect(store, "j", Retention(), ended=1)
    assert (store.leftovers(""), done.unsettled) == ([], 0)
    assert store.list("") == before
    CheckpointStore(store, "j").verify(manifest)
    if backend.name == "directory":
        assert list(Path(backend.uri.removeprefix("file://"), "doctor").iterdir()) == []


def test_upload_of_an_attempt_that_is_known_to_have_ended_is_garbage(store: ObjectStore, tmp_path: Path) -> None:
    manifest = chain(store, tmp_path, [10])[0]
    dying = CheckpointStore(Failing(store, "create", "manifests/"), "j")
    with pytest.raises(StoreUnavailable):
        make_commit(dying, tmp_path, 1, 20, manifest)
    for ended in (0, 1):
        done = collect(store, "j", Retention(), ended=ended)
        assert (len(done.objects), done.unsettled) == ((0, 2) if ended == 0 else (2, 0))
    CheckpointStore(store, "j").verify(manifest)


def test_graphs_of_an_attempt_that_was_launched_after_the_last_known_end_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = Backend(name="directory", uri=f"file://{root}").open()
    chain(store, tmp_path, [10])
    CheckpointStore(store, "j").start_attempt(2)
    (root / ".tmp" / "graphs,0123-0~1").write_bytes(b"half")
    assert collect(store, "j", Retention(), ended=1).unsettled == 1
    assert [left.key for left in store.leftovers("")] == ["graphs/0123-0"]


def test_probe_beside_a_collection_passes_in_every_order(tmp_path: Path) -> None:
    template = Memory()
    chain(template, tmp_path, [10])
    stores: list[Memory] = []

    def make() -> tuple[Gated, Any, Gated, Any]:
        store = Memory()
        store.objects = dict(template.objects)
        stores.append(store)
        one = Gated(store, lambda operation, key: key.startswith("probe/"))
        two = Gated(store, lambda operation, key: key.startswith("probe/"))
        return one, lambda: collect(one, "j", Retention()), two, lambda: probe(two)

    taken = []
    for collected, probed in every_order(make):
        assert isinstance(collected, Collected), collected
        assert probed is None, probed
        assert stores.pop().objects == template.objects
        taken.append(len(collected.objects))
    assert set(taken) == {0, 1}


class Collecting(Wrapped):
    """A collection comes in before the request of that number."""

    def __init__(self, store: Memory, at: int) -> None:
        super().__init__(store)
        self._left, self.collected = at, 0

    def before(self, operation: str, key: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.collected = len(collect(self.store, "j", Retention()).objects)


def test_doctor_disturbed_by_a_collection_at_any_moment_concludes_the_same(tmp_path: Path) -> None:
    template = Memory()
    chain(template, tmp_path, [10])
    num_disturbed = 0
    for at in itertools.count(1, 3):
        memory = Memory()
        memory.objects = dict(template.objects)
        store = Collecting(memory, at)
        found = examine(store)
        assert found.protocol == "create-only" and all(check.holds is not False for check in found.checks)
        assert memory.objects == template.objects
        num_disturbed += store.collected > 0
        if store._left > 0:  # it was done before that many requests
            break
    assert num_disturbed > 10


def test_store_that_loses_what_is_written_is_told_from_a_collection() -> None:
    class Losing(Wrapped):
        def get(self, key: str) -> bytes:
            raise ObjectNotFound(key)

    with pytest.raises(StoreUnavailable, match="was written and cannot be read"):
        probe(Losing(Memory()))
    with pytest.raises(StoreUnavailable, match="was gone before it had finished, 3 times"):
        examine(Losing(Memory()))


def test_doctor_removes_the_rooms_of_killed_ones_and_leaves_those_at_work() -> None:
    class Beside(Wrapped):
        """Another doctor goes on with its work after this one's first look around."""

        def before(self, operation: str, key: str) -> None:
            if operation != "list":
                memory.objects.setdefault("doctor/live/read", b"x")

    memory = Memory()
    memory.objects = {"doctor/dead/mark": b"m", "doctor/dead/read": b"x", "doctor/live/mark": b"m", "attempts/x": b"x"}
    examine(Beside(memory))
    assert set(memory.objects) == {"attempts/x", "doctor/live/mark", "doctor/live/read"}
