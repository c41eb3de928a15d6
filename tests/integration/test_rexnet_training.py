"""Real msrun, two workers on one core each at most: resume, drain and damage, on the digits at 16 px."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.storage import open_store
from cluster.storage.checkpoints import CheckpointStore
from jobs.manifest import Manifest
from rexnet.data.digits import write_digits
from rexnet.journal import from_lines
from tests.support.training import SMALL, Training

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder)
    return str(folder)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, data: str, graphs: Path) -> Iterator[Path]:
    """A folder in which a bare run went from start to end."""
    folder = tmp_path_factory.mktemp("untouched")
    with Training(folder, *SMALL, f"--data_dir={data}", graphs=graphs) as run:
        assert run.finish() == 0, run.said()
        for rank in (0, 1):
            assert run.report(rank)["reason"] == f"done at step {STEPS}"
        assert run.report(0)["heartbeat"]["checkpoint"]["step"] == STEPS
    yield folder


def store_in(folder: Path) -> CheckpointStore:
    return CheckpointStore(open_store(f"file://{folder / 'checkpoints'}"), "bare")


def newest_in(folder: Path) -> Manifest:
    manifest = store_in(folder).newest()
    assert manifest is not None
    return manifest


def losses_in(folder: Path) -> dict[int, float]:
    """Loss of each step along the newest chain; a step that stood there twice would fail."""
    store, found = store_in(folder), dict[int, float]()
    for manifest in store.history(newest_in(folder)):
        for point in from_lines(store.read(manifest, "metrics.jsonl"), manifest.name):
            if point.key == "train_loss":
                assert point.step not in found
                found[point.step] = point.value
    return found


def test_bare_run_commits_and_second_start_has_nothing_left_to_do(untouched: Path, data: str, graphs: Path) -> None:
    before = newest_in(untouched)
    assert (before.attempt, before.step, before.samples) == (1, STEPS, STEPS * 32)
    assert sorted(losses_in(untouched)) == list(range(1, STEPS + 1))
    with Training(untouched, *SMALL, f"--data_dir={data}", graphs=graphs) as run:
        assert run.finish() == 0, run.said()
        resumed = run.report(0)["heartbeat"]["resumed"]
    assert resumed == {"manifest": before.name, "step": STEPS}
    assert newest_in(untouched).name == before.name


def test_drained_and_resumed_run_ends_with_the_bytes_of_an_untouched_one(
    tmp_path: Path, untouched: Path, data: str, graphs: Path
) -> None:
    with Training(tmp_path, *SMALL, f"--data_dir={data}", graphs=graphs) as run:
        run.wait_for(lambda beats: len(beats) == 2 and beats[0]["step"] >= 4)
        run.terminate_workers()
        run.wait_until(lambda: "Error code: 75" in run.printed())  # its scheduler process goes on waiting: no matter
        reports = [run.report(rank) for rank in (0, 1)]
    step = reports[0]["heartbeat"]["step"]
    assert [report["reason"] for report in reports] == [f"drained at step {step}"] * 2
    assert 4 <= step < STEPS
    assert newest_in(tmp_path).step == step

    with Training(tmp_path, *SMALL, f"--data_dir={data}", graphs=graphs) as run:
        assert run.finish() == 0, run.said()
        assert run.report(0)["heartbeat"]["resumed"]["step"] == step
    resumed, reference = newest_in(tmp_path), newest_in(untouched)
    assert (resumed.attempt, resumed.step) == (2, STEPS)
    assert losses_in(tmp_path) == losses_in(untouched)
    assert resumed.file("state.safetensors") == reference.file("state.safetensors")
    assert resumed.metrics == reference.metrics


def test_flipped_byte_in_newest_checkpoint_resumes_from_the_one_before(
    tmp_path: Path, untouched: Path, data: str, graphs: Path
) -> None:
    shutil.copytree(untouched / "checkpoints", tmp_path / "checkpoints")
    damaged = newest_in(tmp_path)
    blob = tmp_path / "checkpoints" / "objects" / damaged.file("state.safetensors").sha256
    blob.chmod(0o644)
    body = bytearray(blob.read_bytes())
    body[len(body) // 2] ^= 1
    blob.write_bytes(body)
    with Training(tmp_path, *SMALL, f"--data_dir={data}", graphs=graphs) as run:
        assert run.finish() == 0, run.said()
        beat = run.report(0)["heartbeat"]
    assert beat["resumed"]["manifest"] == damaged.parent
    assert [item["manifest"] for item in beat["quarantined"]] == [damaged.name]
    assert newest_in(tmp_path).file("state.safetensors") == newest_in(untouched).file("state.safetensors")


def test_unknown_key_ends_with_64_and_one_sentence(tmp_path: Path, data: str) -> None:
    command = [sys.executable, "-m", "rexnet.train", "--config=quickstart", f"--data_dir={data}", "--learning_rat=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 64
    assert "learning_rat" in done.stderr and len(done.stderr.strip().splitlines()) == 1
