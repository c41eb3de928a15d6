"""The checkpoint writer's collections: beside commits, in nobody's way, and no matter what becomes of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.files import STATE
from jobs.manifest import OBJECT_PREFIX
from jobs.retention import Retention
from tests.support.writing import Run, check_chain

pytestmark = pytest.mark.filterwarnings("ignore")
EVERY = 10  # commits


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    one = Run(tmp_path, retention=Retention(last=2))
    yield one
    one.close()


def states(run: Run) -> list[int]:
    """Steps whose state is still there."""
    present = {info.key for info in run.store.list(OBJECT_PREFIX)}
    return [manifest.step for manifest in run.manifests if manifest.file(STATE).key in present]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of collections, by its first word."""
    words = [record.getMessage().split()[0].removeprefix("action=").rstrip(":") for record in caplog.records]
    return [word for word in words if word.startswith(("collection", "checkpoints-collected"))]


def test_every_tenth_commit_the_older_states_go(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.train_and_save(EVERY - 1)
    assert len(states(run)) == EVERY - 1
    run.train_and_save(1)
    run.collected()
    assert states(run) == [EVERY - 1, EVERY]
    run.train_and_save(EVERY)
    run.collected()
    assert states(run) == [2 * EVERY - 1, 2 * EVERY]
    assert said(caplog) == ["checkpoints-collected"] * 2
    check_chain(run, 2 * EVERY, with_state=(2 * EVERY - 1, 2 * EVERY))


def test_a_commit_does_not_wait_for_a_collection(run: Run) -> None:
    run.store.hold_downloads()
    run.train_and_save(EVERY)
    run.store.download_began.acquire()
    run.train_and_save(EVERY)  # and none of them begins a second one
    assert run.writer.collecting
    assert run.writer.counts() == {"committed": 2 * EVERY, "coalesced": 0, "failed": 0}
    run.store.release()
    run.collected()
    assert states(run)[-2:] == [2 * EVERY - 1, 2 * EVERY]
    run.writer.finish(run.progress(), timeout_s=60)


def test_a_drain_beside_a_hung_collection_commits_the_last_step(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.store.hold_downloads()
    run.train_and_save(EVERY)
    run.store.download_began.acquire()
    run.train()
    run.writer.finish(run.progress(), timeout_s=30)
    assert run.writer.collecting and [manifest.step for manifest in run.manifests][-1] == EVERY + 1
    run.store.release()
    run.collected()
    assert said(caplog) == ["collection-interrupted"]
    assert states(run) == list(range(1, EVERY + 2))  # it was told to end, and deleted nothing any more


def test_a_collection_without_a_local_disk_is_said_and_the_next_one_works(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    run.train_and_save(EVERY)
    run.collected()
    run.writer.check()
    assert said(caplog) == ["collection-failed"] and "ENOENT" in caplog.text and "TMPDIR" in caplog.text
    assert states(run) == list(range(1, EVERY + 1))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    run.train_and_save(EVERY)
    run.collected()
    assert states(run) == [2 * EVERY - 1, 2 * EVERY]


def test_a_bug_in_a_collection_is_raised_in_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Retention, "keeps", broken)
    run.train_and_save(EVERY)
    run.collected()
    assert not run.writer.busy
    with pytest.raises(ZeroDivisionError):
        run.writer.check()


def test_a_commit_that_failed_begins_no_collection(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.store.dead = True
    run.train_and_save(2)  # nothing is committed, and that is a multiple of ten
    run.collected()
    assert run.writer.num_failed == 2 and not said(caplog)
    run.store.dead = False
    run.train_and_save(EVERY)
    run.collected()
    run.store.dead = True
    run.train_and_save(1)
    run.collected()
    assert run.writer.num_failed == 3 and said(caplog) == ["checkpoints-collected"]
    run.store.dead = False
    run.writer.finish(run.progress(), timeout_s=60)
    newest = run.chain.newest()
    assert newest is not None and newest.step == run.step
