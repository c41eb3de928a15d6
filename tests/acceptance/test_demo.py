"""The main job as a newcomer sees it: real training, a real preemption, real MLflow."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import jobs
from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs.states import State
from tests.support.rex import Rex


@pytest.fixture(scope="module")
def rex() -> Iterator[Rex]:
    with tempfile.TemporaryDirectory(prefix="rex") as folder:
        rex = Rex(Path(folder))
        try:
            yield rex
        finally:
            assert rex("down", "--now").returncode == 0
            assert rex.own_processes() == []


def metric_history(view: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Every point of one metric of the job's run, straight from MLflow's REST interface."""
    where, points, token = view["mlflow"], [], ""
    while True:
        url = (
            f"{where['tracking_uri']}/api/2.0/mlflow/metrics/get-history?run_id={where['run_id']}"
            f"&metric_key={key}&max_results=1000{f'&page_token={token}' if token else ''}"
        )
        with urllib.request.urlopen(url, timeout=30) as answer:
            page = json.load(answer)
        points += page.get("metrics", [])
        token = page.get("next_page_token", "")
        if not token:
            return points


@pytest.mark.timeout(1300)
def test_main_job_is_preempted_resumes_and_ends_verified(rex: Rex) -> None:
    done = rex("demo", "--json", timeout_s=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stderr)  # the whole story, for whoever reads CI
    views = json.loads(done.stdout)
    main, urgent = views["main"], views["urgent"]
    rex.finish(main["job_id"])  # MLflow may be slower than the demo waits for it

    assert main["state"] == "succeeded" and urgent["state"] == "succeeded"
    first, second = main["attempts"]
    assert (first["cause"], second["cause"]) == ("preempted", "done")
    assert second["from_step"] == first["to_step"] > 0, "drained at a step's end, resumed at that very step"
    assert second["to_step"] == main["checkpoint"]["step"] == main["progress"]["total_steps"]
    assert main["metrics"]["top1"] >= 0.95
    assert main["seconds"]["lost_work"] == 0
    assert len(urgent["attempts"]) == 1 and rex.processes(main["job_id"]) == []
    preempted = next(e for e in rex.store.events(main["job_id"]) if e["action"] == "preempt_requested")
    assert preempted["detail"]["for"] == urgent["job_id"]

    points = metric_history(main, "train_loss")
    steps = [int(point["step"]) for point in points]
    assert sorted(steps) == list(range(1, main["checkpoint"]["step"] + 1)), "one point a step, over both attempts"
    url = f"{main['mlflow']['tracking_uri']}/api/2.0/mlflow/runs/get?run_id={main['mlflow']['run_id']}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert json.load(answer)["run"]["info"]["status"] == "FINISHED"

    manifest = Path(rex.home.path, "objects", main["job_id"], main["checkpoint"]["manifest"])
    assert main["checkpoint"]["sha256"] in manifest.read_text()


def recipe(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        Path(jobs.__file__).with_name("recipes").joinpath("quickstart.yaml").read_text()
    )
    found["program"]["args"] += changes.pop("args", [])
    return {**found, **changes}


def test_killed_worker_and_flipped_byte_cost_steps_and_nothing_else(rex: Rex, tmp_path: Path) -> None:
    """Real training: rank 1 is killed, and before the second attempt starts the newest checkpoint loses a bit."""
    source = next(row for row in rex.store.jobs() if row.spec.name == "quickstart" and row.state is State.SUCCEEDED)
    short = recipe(
        name="short",
        init_from={"job": source.id},
        retry={"backoff_s": 20},
        args=["--max_steps", "120", "--ckpt_every", "10 steps"],
    )
    spec = tmp_path / "short.yaml"
    spec.write_text(yaml.safe_dump(short))
    job = rex.submit(spec)
    rex.wait(job, lambda s: (s["checkpoint"] or {"step": 0})["step"] >= 20)
    victim = rex.wait_for_rank(job, 1)
    shown = rex("status", job).stdout
    assert f"rank 1        pid {victim}" in shown
    os.kill(victim, signal.SIGKILL)
    rex.wait(job, lambda s: s["state"] == "backoff")
    newest = CheckpointStore(open_store(rex.store.get(job).store_uri), job).newest()  # no heartbeat may have told of it
    assert newest is not None
    flip_a_byte(Path(rex.home.path, "objects", job), newest.name)

    ended = rex.finish(job)
    first, second = ended["attempts"]
    assert (ended["state"], first["cause"], second["cause"]) == ("succeeded", "crash", "done")
    assert [bad["manifest"] for bad in second["quarantined"]] == [newest.name]
    assert 0 < second["from_step"] < newest.step
    assert ended["checkpoint"]["step"] == 120 and ended["seconds"]["lost_work"] > 0
    summary = rex("status", job).stdout
    assert f"quarantined {newest.name}" in summary and f"went on from {second['resumed_from']}" in summary
    assert sorted(int(point["step"]) for point in metric_history(ended, "train_loss")) == list(range(1, 121))
    assert rex.processes(job) == []


def test_job_that_starts_from_the_trained_weights_begins_where_they_left_off(rex: Rex) -> None:
    """That of the test before: its first attempt had them, and its second had its own checkpoint."""
    heir = next(row for row in rex.store.jobs() if row.spec.name == "short")
    status = rex.status(heir.id)
    first, second = status["attempts"]
    assert (first["from_step"], first["resumed_from"]) == (0, None) and second["resumed_from"] is not None
    point = min(metric_history(status, "train_loss"), key=lambda point: int(point["step"]))
    assert int(point["step"]) == 1
    assert point["value"] < 1.0, "2.3, the logarithm of ten classes, is where untrained weights begin"


def flip_a_byte(store: Path, manifest: str) -> None:
    entry = next(f for f in json.loads((store / manifest).read_text())["files"] if f["name"] == "state.safetensors")
    (blob,) = (path for path in store.rglob(f"*{entry['sha256']}*") if path.is_file())
    body = bytearray(blob.read_bytes())
    body[len(body) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(body)
