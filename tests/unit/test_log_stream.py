"""What `rexctl logs` prints from which source, when sources come, end and fail. Store and folders are real."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cluster.launch import LaunchPlan
from cluster.logs.files import BLOCK, Chunk, FolderLogs
from cluster.logs.shipped import ship
from cluster.storage import open_store
from jobs.budgets import Cause
from jobs.errors import ClusterUnreachable, NotFoundError, SpecError
from jobs.spec import build_spec
from jobs.states import AttemptEnded, BackoffElapsed, GangGranted
from orchestrator.logs import reading as logs_module
from orchestrator.logs.lines import LineReader, Wanted
from orchestrator.logs.reading import Line, View, stream
from orchestrator.store import Store

NODES = [{"id": f"n{i}", "host": f"h{i}", "address": f"10.0.0.{i}"} for i in (0, 1)]


class Remote:
    """Node 1's host: its folders lie elsewhere, and it answers when it is told to."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, 0
        self.problem: Exception | None = None
        self.after_reads = 1 << 30

    def open(self, node: Mapping[str, str], directory: str) -> Any:
        self._answer()
        remote = self

        class There(FolderLogs):
            shipping = None

            def read(self, offsets: Mapping[str, int], max_bytes: int) -> dict[str, Chunk]:
                remote.asked += 1
                remote._answer()
                return super().read(offsets, 10)

        return There(self.root / Path(directory).relative_to(self.root.parent / "work"))

    def _answer(self) -> None:
        if self.asked > self.after_reads and self.problem is None:
            self.problem = NotFoundError("h1 (10.0.0.1) is not in the Ray cluster any more")
        if self.problem is not None:
            raise self.problem


class World:
    def __init__(self, folder: Path) -> None:
        self.work, self.far = folder / "work", folder / "far"
        self.store = Store(f"sqlite:///{folder / 'store.db'}")
        self.store.migrate()
        spec = build_spec({"name": "j", "program": {"module": "m"}, "gang": {"nodes": 2}, "retry": {"backoff_s": 0.01}})
        self.objects = f"file://{folder / 'objects'}"
        self.store.submit("j-1", spec, store_uri=self.objects, init_from=None, now=0.0)
        self.remote = Remote(self.far)
        self.said: list[str] = []

    def start(self, *, ready: bool = True) -> int:
        row = self.store.get("j-1")
        if row.state.value == "backoff":
            row = self.store.apply(row, BackoffElapsed(), now=1.0, action="backoff_elapsed")
        row = self.store.apply(row, GangGranted(), now=1.0, action="gang_granted", nodes=NODES)
        plan = LaunchPlan(
            job="j-1", attempt=row.job.attempt, token="t", nodes=2, workers_per_node=1, cpus_per_worker=1,
            npus_per_node=0, program=("module", "m"), work_root=str(self.work),
        )  # fmt: skip
        self.store.note_attempt("j-1", row.job.attempt, plan=asdict(plan), ready_at=1.0 if ready else None)
        return row.job.attempt

    def end(self, cause: Cause = Cause.CRASH) -> None:
        row = self.store.get("j-1")
        ended = AttemptEnded(attempt=row.job.attempt, cause=cause, progressed=True, detail="")
        self.store.apply(row, ended, now=2.0, action="attempt_ended")

    def directory(self, attempt: int, rank: int) -> Path:
        return (self.far if rank else self.work) / "j-1" / f"attempt-{attempt}" / f"node-{rank}"

    def write(self, attempt: int, rank: int, text: str) -> None:
        path = self.directory(attempt, rank) / "logs" / f"worker_{rank}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as log:
            log.write(text)

    def view(self, follow: bool = False, **wanted: Any) -> View:
        remote: Callable[[], Any] = lambda: self.remote  # noqa: E731
        return View(
            wanted=Wanted(**wanted), follow=follow, say=self.said.append, explain=self.said.append, remote=remote
        )

    def lines(self, view: View) -> list[str]:
        return [text(line) for line in stream(self.store, "j-1", view)]


def text(line: Line) -> str:
    return f"{line.attempt}.{line.rank} {line.source} {line.dropped_bytes or line.line}"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_ended_attempt_is_read_rank_by_rank_from_the_folder_then_the_store_then_the_node(world: World) -> None:
    world.start()
    world.write(1, 0, "a\nb\n")
    world.write(1, 1, "c\nwithout an end")
    world.end()
    assert world.lines(world.view()) == ["1.0 folder a", "1.0 folder b", "1.1 node c", "1.1 node without an end"]
    ship(open_store(world.objects), world.directory(1, 1), 1, 1)
    assert world.lines(world.view(rank=1)) == ["1.1 store c", "1.1 store without an end"]
    assert world.lines(world.view(tail=1)) == ["1.0 folder b", "1.1 store without an end"]
    assert "attempt 1, node 1 (h1): read from the object store" in world.said[-1]


def test_damaged_copy_in_the_store_is_passed_over_where_the_node_still_has_it(world: World) -> None:
    world.start()
    world.write(1, 1, "c\n")
    world.end()
    store = open_store(world.objects)
    ship(store, world.directory(1, 1), 1, 1)
    store.delete("logs/attempt-1/node-1/worker_1.log.gz")
    assert world.lines(world.view(rank=1)) == ["1.1 node c"]


def test_host_lost_while_it_is_followed_is_told_and_the_next_attempt_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_module, "_AGAIN_S", 0.01)
    monkeypatch.setattr(logs_module, "_POLL_S", 0.02)
    world.start()
    world.write(1, 0, "a\n")
    world.write(1, 1, "one\ntwo\nthree\nfour\n")
    world.remote.after_reads = 1
    view = world.view(follow=True)
    seen: list[str] = []
    for line in stream(world.store, "j-1", view):
        seen.append(text(line))
        if seen[-1].endswith("two"):
            world.end()
            world.start()
            world.write(2, 0, "b\n")
            world.end(Cause.DONE)
    assert seen == ["1.0 folder a", "1.1 node one", "1.1 node two", "1.1 node th", "2.0 folder b"]
    silent, lost, next_one = [line for line in world.said if "cannot be read" in line]
    assert "the log of rank 1 cannot be read any further now, it is tried again" in silent
    assert lost.startswith("attempt 1, node 1 (h1): the log of rank 1 cannot be read any further: ")
    assert "is not in the Ray cluster any more" in lost and "not shipped" in lost
    assert next_one.startswith("attempt 2, node 1 (h1)") and view.num_lost == 2


def test_host_that_is_silent_for_a_while_is_read_on_where_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "_AGAIN_S", 0.01)
    monkeypatch.setattr(logs_module, "_POLL_S", 0.01)
    world.start()
    world.write(1, 1, "one\n")
    seen: list[str] = []
    follower = threading.Thread(
        target=lambda: seen.extend(map(text, stream(world.store, "j-1", world.view(follow=True, rank=1))))
    )
    follower.start()

    def until(wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not wanted():
            assert time.monotonic() < deadline, (seen, world.said)
            time.sleep(0.01)

    until(lambda: seen == ["1.1 node one"])
    world.remote.problem = ClusterUnreachable("h1 does not answer")
    until(lambda: any("cannot be read any further now, it is tried again" in line for line in world.said))
    world.write(1, 1, "two\n")
    world.remote.problem = None
    until(lambda: seen[-1].endswith("two"))
    world.end(Cause.DONE)
    follower.join(60)
    assert seen == ["1.1 node one", "1.1 node two"] and not follower.is_alive()


def test_what_was_never_written_or_does_not_exist_is_told(world: World) -> None:
    with pytest.raises(NotFoundError, match="has had no attempt yet"):
        world.lines(world.view())
    world.start(ready=False)
    with pytest.raises(NotFoundError, match="no log was written yet"):
        world.lines(world.view())
    for wanted, message in (
        (world.view(rank=2), "no log of rank 2: its ranks are 0 to 1"),
        (world.view(node=5), "no log of node 5: its nodes are 0 to 1"),
        (world.view(attempt=4), "attempt 4"),
    ):
        with pytest.raises(NotFoundError, match=message):
            world.lines(wanted)
    world.directory(1, 0).mkdir(parents=True)
    with pytest.raises(NotFoundError, match="no log was written yet"):
        world.lines(world.view(rank=0))
    with pytest.raises(SpecError, match="exclude each other"):
        Wanted(rank=1, supervisor=True)


def test_job_that_ends_without_an_attempt_ends_the_following(world: World) -> None:
    from jobs.states import StopRequested

    world.store.request("j-1", StopRequested(cause=Cause.CANCELLED, detail=""), action="cancel_requested")
    with pytest.raises(NotFoundError, match="no log was written"):
        world.lines(world.view(follow=True))


def test_cut_log_gives_what_is_left_and_how_much_is_gone() -> None:
    reader, got = LineReader(), []
    for chunk in (
        Chunk(offset=0, data=b"first\nsec", end=False),
        Chunk(offset=BLOCK, data=b"ond\nthi", end=False),
        Chunk(offset=BLOCK + 7, data=b"rd\r\nlast", end=True),
    ):
        got += list(reader.feed(chunk))
    assert got == ["first", "sec", BLOCK - 9, "third"]
    assert list(reader.finish()) == ["last"]


def test_line_without_end_is_given_out_in_parts() -> None:
    reader = LineReader()
    parts = list(reader.feed(Chunk(offset=0, data=b"x" * (1 << 21), end=False)))
    assert [len(str(part)) for part in parts] == [1 << 21] and reader.offset == 1 << 21
