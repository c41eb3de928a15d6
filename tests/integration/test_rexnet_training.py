"""Real msrun, two workers on one core each at most: resume, drain and damage, on the digits at 16 px."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs.certificate import START
from jobs.manifest import Manifest
from rexnet.data.digits import write_digits
from rexnet.journal import from_lines
from tests.support.training import RICH, ROOT, Training

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder)
    return str(folder)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """A folder in which a bare run went from start to end, with graphs of its own, each rank's digests beside it."""
    folder = tmp_path_factory.mktemp("untouched")
    script = ROOT / "tests" / "support" / "hashing_train.py"
    with Training(folder, *RICH, f"--data_dir={data}", script=script) as run:
        assert run.finish() == 0, run.said()
        for rank in (0, 1):
            assert run.report(rank)["reason"] == f"done at step {STEPS}"
        assert run.report(0)["heartbeat"]["checkpoint"]["step"] == STEPS
    return folder


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
    with Training(untouched, *RICH, f"--data_dir={data}", graphs=graphs) as run:
        assert run.finish() == 0, run.said()
        resumed = run.report(0)["heartbeat"]["resumed"]
    assert resumed == {"manifest": before.name, "step": STEPS}
    assert newest_in(untouched).name == before.name


def _has_reached(step: int, beats: dict[int, dict[str, Any]]) -> bool:
    return len(beats) == 2 and beats[0]["step"] >= step


def test_drained_and_killed_run_ends_with_the_bytes_of_an_untouched_one(
    tmp_path: Path, untouched: Path, data: str, graphs: Path
) -> None:
    """Two preemptions and a SIGKILL at seeded places: parameters, optimiser, EMA, loss scale and every loss."""
    places = random.Random(20261122)
    reached = 0
    for low, high in ((1, 3), (reached + 4, 6)):
        wanted = places.randint(low, high)
        with Training(tmp_path, *RICH, f"--data_dir={data}", graphs=graphs) as run:
            run.wait_for(partial(_has_reached, wanted))
            run.terminate_workers()
            run.wait_until(lambda: "Error code: 75" in run.printed())  # its scheduler process waits on: no matter
            reports = [run.report(rank) for rank in (0, 1)]
        reached = reports[0]["heartbeat"]["step"]
        assert [report["reason"] for report in reports] == [f"drained at step {reached}"] * 2
        assert wanted <= reached < STEPS
        assert newest_in(tmp_path).step == reached
    wanted = places.randint(reached + 1, STEPS - 2)
    with Training(tmp_path, *RICH, f"--data_dir={data}", graphs=graphs) as run:
        run.wait_for(partial(_has_reached, wanted))
        run.kill_worker(1)
        run.wait_until(lambda: run.ended() or "kill" in run.printed().lower())
    with Training(tmp_path, *RICH, f"--data_dir={data}", graphs=graphs) as run:
        assert run.finish() == 0, run.said()
        assert run.report(0)["heartbeat"]["resumed"]["step"] >= reached

    resumed, reference = newest_in(tmp_path), newest_in(untouched)
    assert (resumed.attempt, resumed.step) == (4, STEPS)
    assert losses_in(tmp_path) == losses_in(untouched)
    assert resumed.file("state.safetensors").sha256 == reference.file("state.safetensors").sha256
    assert resumed.metrics == reference.metrics
    assert resumed.certificate == reference.certificate != START


def alone(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One process without msrun, to its end."""
    command = [sys.executable, "-m", "rexnet.train", *RICH, "--distribute=False", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)


@pytest.fixture(scope="module")
def first_node(tmp_path_factory: pytest.TempPathFactory, data: str) -> tuple[Path, str]:
    """A node on which one process took the first step and left its graphs, there and in a store; what it said."""
    folder = tmp_path_factory.mktemp("first")
    done = alone(folder, f"--data_dir={data}", "--max_steps=1",
                 REX_STORE=f"file://{folder / 'objects'}", REX_COMPILE_CACHE=str(folder / "graphs"))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout + done.stderr


def test_new_node_finds_the_compiled_graphs_among_the_jobs_objects(
    tmp_path: Path, data: str, first_node: tuple[Path, str]
) -> None:
    """MindSpore itself says whether it took the cached graphs or compiled anew."""
    first, said = first_node
    done = alone(tmp_path, f"--data_dir={data}", "--max_steps=2",
                 REX_STORE=f"file://{first / 'objects'}", REX_COMPILE_CACHE=str(tmp_path / "graphs"))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    compiles = "Check the consistency of dependency files hash failed"
    assert compiles in said and "graphs-restored" not in said
    assert compiles not in done.stdout + done.stderr and "graphs-restored from=store" in done.stderr


def test_one_worker_goes_on_where_two_were_with_the_same_global_batch(
    tmp_path: Path, untouched: Path, data: str, first_node: tuple[Path, str]
) -> None:
    shutil.copytree(untouched / "checkpoints", tmp_path / "checkpoints")
    before = newest_in(tmp_path).attempt
    longer = [f"--data_dir={data}", "--max_steps=15"]
    done = alone(tmp_path, *longer, REX_COMPILE_CACHE=str(first_node[0] / "graphs"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accumulation=2 global_batch=32" in done.stderr
    assert "workers were 2, are 1: not bit-identical" in done.stderr
    manifest = newest_in(tmp_path)
    assert manifest.attempt > before
    assert (manifest.step, manifest.world_size) == (15, 1)
    assert manifest.samples == 15 * 32
    assert sorted(losses_in(tmp_path)) == list(range(1, 16))

    other = alone(tmp_path, *longer, "--global_batch=16")
    assert other.returncode == 64
    assert "made with a global batch of 32, this run has one of 16" in other.stderr


def test_resumed_run_keeps_the_instruction_set_that_it_began_with(
    tmp_path: Path, data: str, first_node: tuple[Path, str]
) -> None:
    """On a node with a better one, too: each rounds differently."""
    cut, whole, graphs = tmp_path / "cut", tmp_path / "whole", str(first_node[0] / "graphs")
    for folder, steps, held in ((cut, 2, "baseline"), (cut, 4, ""), (whole, 4, "baseline")):
        folder.mkdir(exist_ok=True)
        arguments = (f"--data_dir={data}", f"--max_steps={steps}")
        done = alone(folder, *arguments, REX_COMPILE_CACHE=graphs, REX_KERNELS=held)
        assert done.returncode == 0, done.stderr[-3000:]
        assert newest_in(folder).versions["instruction_set"] == "baseline"
        assert "not bit-identical" not in done.stderr
    assert newest_in(cut).attempt == 2
    state = "state.safetensors"
    assert newest_in(cut).file(state).sha256 == newest_in(whole).file(state).sha256


def test_flipped_byte_in_newest_checkpoint_resumes_from_the_one_before(
    tmp_path: Path, untouched: Path, data: str, graphs: Path
) -> None:
    shutil.copytree(untouched / "checkpoints", tmp_path / "checkpoints")
    damaged = newest_in(tmp_path)
    blob = tmp_path / "checkpoints" / damaged.file("state.safetensors").key
    blob.chmod(0o644)
    body = bytearray(blob.read_bytes())
    body[len(body) // 2] ^= 1
    blob.write_bytes(body)
    with Training(tmp_path, *RICH, f"--data_dir={data}", graphs=graphs) as run:
        assert run.finish() == 0, run.said()
        beat = run.report(0)["heartbeat"]
    assert beat["resumed"]["manifest"] == damaged.parent
    assert [item["manifest"] for item in beat["quarantined"]] == [damaged.name]
    state = "state.safetensors"
    assert newest_in(tmp_path).file(state).sha256 == newest_in(untouched).file(state).sha256


def test_unknown_key_ends_with_64_and_one_sentence(tmp_path: Path, data: str) -> None:
    command = [sys.executable, "-m", "rexnet.train", "--config=quickstart", f"--data_dir={data}", "--learning_rat=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 64
    assert "learning_rat" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_ranks_agree_on_all_state_but_moving_statistics_at_each_save(untouched: Path) -> None:
    one, other = ([line.split() for line in (untouched / f"state-rank{rank}.txt").read_text().splitlines()]
                  for rank in (0, 1))  # fmt: skip
    assert [int(line[0]) for line in one] == list(range(1, STEPS + 1))
    assert [line[:2] for line in one] == [line[:2] for line in other]
    assert len({line[1] for line in one}) == STEPS  # the state moves
    assert [line[2] for line in one] != [line[2] for line in other]  # or the statistics would need no exception
