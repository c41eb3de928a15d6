"""The tracker against a real MLflow store on SQLite, and against a server that is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from rexnet.journal import Point, to_lines
from rexnet.tracking import Tracker, main

pytestmark = pytest.mark.filterwarnings("ignore")


def points(first: int, last: int) -> list[Point]:
    return [Point("train_loss", 1 / step, step, 1_700_000_000_000 + step) for step in range(first, last + 1)]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return MlflowClient()


@pytest.fixture
def chain(tmp_path: Path) -> CheckpointStore:
    """A store whose newest chain covers steps 1 to 6 in two manifests."""
    store = CheckpointStore(open_store(f"file://{tmp_path / 'store'}"), "job-1")
    store.start_attempt(1)
    parent = None
    for first, last in ((1, 3), (4, 6)):
        segment = tmp_path / f"segment-{last}"
        segment.write_bytes(to_lines(points(first, last)))
        parent = store.commit(
            attempt=1, step=last, epoch=0, samples=last, parent=parent, files={"metrics.jsonl": segment},
            config_sha256="0" * 64, world_size=1, seed=0, code={}, versions={}, metrics={},
        ).name  # fmt: skip
    return store


def steps_of(client: Any, run_id: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, "train_loss")]


def test_job_run_gets_committed_points_once_and_the_child_shows_all(client: Any, chain: CheckpointStore) -> None:
    run = client.create_run("0")
    seen: list[str] = []
    newest = chain.newest()
    assert newest is not None
    for _ in range(2):  # a second attempt replays what the first had sent
        tracker = Tracker(
            run_id=run.info.run_id, attempt=1, job="job-1", params={"lr": 0.1, "seed": 3}, on_run=seen.append
        )
        tracker.replay(chain, newest)
        tracker.show(points(7, 9))
        tracker.commit(points(7, 8))
        assert tracker.close("FINISHED", timeout_s=60)
    assert steps_of(client, run.info.run_id) == list(range(1, 9))
    children = client.search_runs(["0"], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    assert [steps_of(client, child.info.run_id) for child in children] == [[7, 8, 9]] * 2
    assert {child.info.status for child in children} == {"FINISHED"}
    assert client.get_run(run.info.run_id).data.params == {"lr": "0.1", "seed": "3"}
    assert seen == [run.info.run_id] * 2


def test_replay_command_sends_what_the_run_lacks(
    client: Any, chain: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = client.create_run("0").info.run_id
    for expected in (6, 0):
        assert main(["replay", "--store", f"file://{tmp_path / 'store'}", "--run-id", run]) == 0
        assert f"sent {expected} points" in capsys.readouterr().out
    assert steps_of(client, run) == list(range(1, 7))


def test_chain_of_a_program_without_a_journal_needs_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    store = CheckpointStore(open_store(f"file://{tmp_path / 'store'}"), "job-1")
    store.start_attempt(1)
    (tmp_path / "state").write_bytes(b"1")
    store.commit(
        attempt=1, step=1, epoch=0, samples=1, parent=None, files={"state": tmp_path / "state"},
        config_sha256="0" * 64, world_size=1, seed=0, code={}, versions={}, metrics={},
    )  # fmt: skip
    assert main(["replay", "--store", f"file://{tmp_path / 'store'}", "--run-id", "none"]) == 0
    assert capsys.readouterr().out == "sent 0 points to run none\n"


def test_server_away_is_given_up_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tracker = Tracker(run_id="none", attempt=1, job="j", params={}, on_run=lambda _: None)
    for step in range(1, 100):
        tracker.show(points(step, step))
    assert not tracker.close("FINISHED", timeout_s=0.5)
    assert tracker._thread is not None
    tracker._thread.join()  # given up for good: nothing goes on behind the back of whoever runs next


def test_without_tracking_uri_nothing_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(run_id=None, attempt=1, job="j", params={}, on_run=lambda _: None)
    tracker.show(points(1, 2))
    assert tracker.close("FINISHED")
