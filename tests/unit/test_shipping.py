"""Logs in the object store, and the folders that attempts leave: what is kept, what goes, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.launch import LaunchPlan
from cluster.logs import shipped, shipping
from cluster.logs.attempt_folders import folders_of, prune, shipping_result
from cluster.logs.files import BLOCK, FolderLogs
from cluster.logs.shipped import ShippedLogs, ship
from cluster.logs.shipping import Order, ship_and_tidy, start_shipping
from cluster.node.ending import ENDED_FILE
from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.directory import DirectoryStore
from jobs.errors import IntegrityError, ObjectNotFound, StoreUnavailable
from jobs.retention import Retention
from tests.support.stores import Failing, Memory


def folder(work: Path, attempt: int, *, job: str = "j", node: int = 0, ended: float | None = 1.0) -> Path:
    path = work / job / f"attempt-{attempt}" / f"node-{node}"
    (path / "logs").mkdir(parents=True)
    (path / "logs" / f"worker_{node}.log").write_text(f"rank {node} of attempt {attempt}\n")
    if ended is not None:
        (path / ENDED_FILE).write_text("{}")
        os.utime(path / ENDED_FILE, (ended, ended))
    return path


def order(work: Path, store: str, attempt: int, keep_attempts: int = 5, bound_bytes: int = 1 << 30) -> Order:
    return Order(
        job="j", attempt=attempt, node_rank=0, work_root=str(work), store=store, protocol="create-only",
        keep_attempts=keep_attempts, bound_bytes=bound_bytes,
    )  # fmt: skip


def everything(logs: FolderLogs | ShippedLogs, name: str, max_bytes: int = 1000) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    offset = 0
    while True:
        chunk = logs.read({name: offset}, max_bytes)[name]
        if found and found[-1][0] + len(found[-1][1]) == chunk.offset:
            found[-1] = (found[-1][0], found[-1][1] + chunk.data)
        elif chunk.data:
            found.append((chunk.offset, chunk.data))
        offset = chunk.next_offset
        if chunk.end:
            return found


def test_shipped_logs_read_as_the_folders_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hole, with more than one piece, with none at all; by every offset and from the tail."""
    monkeypatch.setattr(shipped, "PIECE_BYTES", 3000)
    monkeypatch.setattr(shipped, "_READ_BYTES", 700)
    path = folder(tmp_path, 2, node=1)
    lines = "".join(f"line {number}\n" for number in range(800)).encode()
    with (path / "logs" / "worker_1.log").open("wb") as log:
        log.write(lines)
        log.seek(10 * BLOCK)
        log.write(lines + b"without an end")
    (path / "logs" / "scheduler.log").write_bytes(b"")
    (path / "msrun.log").write_text("msrun --join=True\n")
    (path / "stacks").mkdir()
    (path / "stacks" / "rank 1.txt").write_text("Thread 1\n")
    store = Memory()
    assert ship(store, path, 2, 1) == (5, len(lines) * 2 + 14 + 18 + 9 + 2)
    here, there = FolderLogs(path), ShippedLogs(store, 2, 1)
    for name in ("worker_1.log", "scheduler.log", "msrun.log"):
        assert everything(there, name) == everything(here, name)
        assert there.tails([name], 5) == here.tails([name], 5)
    assert there.tails(["worker_1.log"], 0) == here.tails(["worker_1.log"], 0)
    assert there.tails(["worker_1.log"], 5000) == {"worker_1.log": 10 * BLOCK}
    assert there.read({"worker_7.log": 0}, 10) == {}
    keys = [info.key.removeprefix("logs/attempt-2/node-1/") for info in store.list("")]
    assert {"worker_1.log.gz", "worker_1.log.40960.gz", "stacks/rank_1.txt.gz", "ended.json.gz"} < set(keys)


def test_log_that_is_missing_or_damaged_in_the_store_is_told(tmp_path: Path) -> None:
    store = Memory()
    with pytest.raises(ObjectNotFound):
        ShippedLogs(store, 1, 0)
    ship(store, folder(tmp_path, 1), 1, 0)
    key = "logs/attempt-1/node-0/worker_0.log.gz"
    store.objects[key] = store.objects[key][:-9]
    with pytest.raises(IntegrityError, match="damaged"):
        ShippedLogs(store, 1, 0).read({"worker_0.log": 0}, 10)
    store.delete(key)
    with pytest.raises(IntegrityError, match="missing"):
        ShippedLogs(store, 1, 0).read({"worker_0.log": 0}, 10)


def test_index_comes_last(tmp_path: Path) -> None:
    store = Memory()
    with pytest.raises(StoreUnavailable):
        ship(Failing(store, "put_file", "logs/attempt-1/node-0/worker"), folder(tmp_path, 1), 1, 0)
    with pytest.raises(ObjectNotFound):
        ShippedLogs(store, 1, 0)


def test_store_that_is_down_is_tried_again_within_bounds_then_told_and_the_next_attempt_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "_WAITS_S", (1, 600))  # two tries, however long they take
    work, root = tmp_path / "work", tmp_path / "objects"
    first = folder(work, 1)
    root.write_text("no folder: every write fails")
    said: list[str] = []
    began = time.monotonic()
    ship_and_tidy(order(work, f"file://{root}", 1), said.append, give_up_s=300.0)
    assert time.monotonic() - began >= 1.0  # it has waited
    result = shipping_result(first)
    assert result is not None and result["tries"] == 2 and str(root) in result["error"]
    assert "try 1" in said[0] and '"error": "' in said[-1]
    root.unlink()
    folder(work, 2)
    ship_and_tidy(order(work, f"file://{root}", 2), said.append)
    store = DirectoryStore(root)
    for attempt in (1, 2):
        text = f"rank 0 of attempt {attempt}\n".encode()
        assert everything(ShippedLogs(store, attempt, 0), "worker_0.log") == [(0, text)]
    assert all(one.is_shipped for one in folders_of(work, "j"))


@pytest.mark.parametrize("bind", ["none", "cores", "numa"])
def test_shipping_starts_whatever_the_workers_were_bound_to(bind: str, tmp_path: Path) -> None:
    """It gets a worker's environment without being given CPUs or devices, and the folder that it runs from."""
    plan = LaunchPlan(
        job="j", attempt=1, token="t", nodes=1, workers_per_node=2, cpus_per_worker=1, npus_per_node=2, bind=bind,
        program=("module", "m"), work_root=str(tmp_path), code_roots=("/code/x",), env={"REX_STORE": "file:///o"},
    )  # fmt: skip
    assert shipping._environment(plan, 0)["REX_SHIPS"] == "j"


def test_shipping_process_is_told_which_code_it_runs_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, 1)
    started: list[list[str]] = []

    class Started:
        def __init__(self, command: list[str], **options: object) -> None:
            started.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Started)
    plan = LaunchPlan(
        job="j", attempt=1, token="t", nodes=1, workers_per_node=1, cpus_per_worker=1, npus_per_node=0,
        program=("module", "m"), work_root=str(tmp_path), code_roots=("/code/x",), env={"REX_STORE": "file:///o"},
    )  # fmt: skip
    start_shipping(plan, 0)
    (command,) = started
    assert json.loads(command[-1])["code_root"] == "/code/x"


def test_store_that_cannot_be_meant_is_not_tried_again(tmp_path: Path) -> None:
    path = folder(tmp_path, 1)
    ship_and_tidy(order(tmp_path, "ftp://nowhere", 1), lambda line: None)
    result = shipping_result(path)
    assert result is not None and result["tries"] == 1 and "no scheme that is known" in result["error"]


def test_only_the_newest_attempts_folders_stay(tmp_path: Path) -> None:
    for attempt in range(1, 7):
        folder(tmp_path, attempt, ended=None if attempt in (2, 6) else 1.0)
    other = folder(tmp_path, 1, job="other", ended=None)
    said = list(prune(tmp_path, keep_attempts=3, bound_bytes=1 << 30))
    assert [one.attempt for one in folders_of(tmp_path, "j")] == [4, 5, 6]
    assert other.is_dir() and len(said) == 3 and "never shipped" in said[0]
    assert not (tmp_path / "j" / "attempt-1").exists()


def test_room_is_made_by_ended_jobs_first_shipped_ones_then_the_oldest_never_by_a_live_one(tmp_path: Path) -> None:
    def sized(job: str, attempt: int, ended: float | None, *, is_shipped: bool) -> None:
        path = folder(tmp_path, attempt, job=job, ended=ended)
        (path / "big").write_bytes(b"x" * (1 << 20))
        if is_shipped:
            (path / "shipped.json").write_text(json.dumps({"error": None}))

    sized("live", 1, 10.0, is_shipped=True)
    sized("live", 2, None, is_shipped=False)
    sized("done", 1, 30.0, is_shipped=True)
    sized("over", 1, 20.0, is_shipped=True)
    sized("mute", 1, 5.0, is_shipped=False)
    left = []
    for bound in (4.5, 3.5, 2.5, 1.5, 0.5):
        said = list(prune(tmp_path, keep_attempts=5, bound_bytes=int(bound * (1 << 20))))
        left.append(sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/attempt-*")))
    gone = [sorted(set(before) - set(after)) for before, after in pairwise(left)]
    assert "over/attempt-1" not in left[0] and len(left[0]) == 4
    assert gone == [["done/attempt-1"], ["mute/attempt-1"], ["live/attempt-1"], []]
    assert left[-1] == ["live/attempt-2"] and "have not ended" in said[0]


def test_collecting_checkpoints_leaves_logs_alone(tmp_path: Path) -> None:
    uri = f"file://{tmp_path / 'objects'}"
    store = open_store(uri)
    chain = CheckpointStore(store, "j")
    chain.start_attempt(1)
    chain.start_attempt(2)
    ship(store, folder(tmp_path / "work", 1), 1, 0)
    before = store.list("logs/")
    collected = chain.collect(Retention())
    assert store.list("logs/") == before and len(before) == 3
    assert (collected.objects, collected.leftovers, collected.unsettled) == ((), (), 0)
    assert chain.manifests() == [] and chain.start_attempt(3).manifest is None
