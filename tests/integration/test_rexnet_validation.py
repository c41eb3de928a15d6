"""Real msrun, two workers: SIGTERM in the middle of a validation, and what the attempts after it make of that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs import certificate
from jobs.manifest import Manifest
from rexnet.data.digits import write_digits
from rexnet.journal import Point, from_lines
from tests.support.training import RICH, Training

STEPS, FIRST = 8, 4
# Two steps an epoch and validations after every second one, that is after FIRST and STEPS; weights' files after each.
SHORT = (*RICH, "--num_samples=64", "--epoch_size=4", "--val_interval=2", "--ckpt_save_policy=latest_k")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits, each image of the validation split 12 times: long enough to be stopped in the middle."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder)
    for path in list((folder / "val").rglob("*.png")):
        for copy in range(1, 12):
            os.link(path, path.with_stem(f"{path.stem}-{copy}"))
    return str(folder)


def store_in(folder: Path) -> CheckpointStore:
    return CheckpointStore(open_store(f"file://{folder / 'checkpoints'}"), "bare")


def history(folder: Path) -> list[Manifest]:
    """The newest chain, oldest first."""
    newest = store_in(folder).newest()
    assert newest is not None
    return store_in(folder).history(newest)[::-1]


def points(folder: Path) -> list[Point]:
    """Those of the newest chain that are no times and rates."""
    store = store_in(folder)
    found = [point for one in history(folder) for point in from_lines(store.read(one, "metrics.jsonl"), one.name)]
    return [point for point in found if point.key != "images_per_s"]


def trail(folder: Path) -> list[certificate.Entry]:
    store = store_in(folder)
    return [
        entry
        for one in history(folder)
        for entry in certificate.from_lines(store.read(one, certificate.FILE), one.name)
    ]


def train(folder: Path, data: str, graphs: Path, *, stop_at: int | None) -> list[str]:
    """Start once, and terminate it in the validation of step `stop_at`; the ranks' reasons to end."""
    with Training(folder, *SHORT, f"--data_dir={data}", graphs=graphs) as run:
        if stop_at is None:
            assert run.finish() == 0, run.said()
        else:
            run.wait_for(
                lambda beats: [(b["phase"], b["step"]) for b in beats.values()] == [("validating", stop_at)] * 2
            )
            run.terminate_workers()
            run.wait_until(lambda: "Error code: 75" in run.printed())  # its scheduler process waits on: no matter
        return [run.report(rank)["reason"] for rank in (0, 1)]


def test_stopped_validation_is_made_up_for_with_the_bytes_of_an_untouched_run(
    tmp_path: Path, data: str, graphs: Path
) -> None:
    """Stopped in the first validation and in the last one; with graphs from the cache."""
    untouched, stopped = (tmp_path / name for name in ("untouched", "stopped"))
    untouched.mkdir()
    stopped.mkdir()
    assert train(untouched, data, graphs, stop_at=None) == [f"done at step {STEPS}"] * 2

    for attempt, stop_at in enumerate((FIRST, STEPS), 1):
        assert train(stopped, data, graphs, stop_at=stop_at) == [f"drained at step {stop_at}"] * 2
        newest = history(stopped)[-1]
        assert (newest.step, newest.metrics) == (stop_at, {})
        assert newest.attempt == attempt
        assert [point.step for point in points(stopped) if point.key == "val_top1"] == [FIRST] * (stop_at == STEPS)
    assert train(stopped, data, graphs, stop_at=None) == [f"done at step {STEPS}"] * 2

    assert {manifest.step for manifest in history(untouched) if manifest.metrics} <= {FIRST, STEPS}  # of that state
    one, other = history(stopped)[-1], history(untouched)[-1]
    assert (one.attempt, one.step, one.parent) == (3, STEPS, f"manifests/000002-{STEPS:09d}.json")
    assert one.file("state.safetensors").sha256 == other.file("state.safetensors").sha256
    assert one.metrics == other.metrics and set(one.metrics) == {"top1", "top5", "loss"}
    assert one.certificate == other.certificate and trail(stopped) == trail(untouched)
    values = [[(point.key, point.step, point.value) for point in points(folder)] for folder in (stopped, untouched)]
    assert values[0] == values[1] and len(values[0]) == 2 * STEPS + 2 * 3
    kept = [
        {path.name: path.read_bytes() for path in (folder / "ckpt").glob("*.ckpt")} for folder in (stopped, untouched)
    ]
    assert kept[0] == kept[1] and set(kept[0]) == {f"rexnet_09-{epoch}_{2 * epoch}.ckpt" for epoch in (1, 2, 3, 4)}
