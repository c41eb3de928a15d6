"""The main job as a newcomer sees it: real training, a real preemption, real MLflow."""

from __future__ import annotations

import json
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


def test_main_job_is_preempted_resumes_and_ends_verified(rex: Rex) -> None:
    done = rex("demo", "--json", timeout_s=580)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stderr)  # the whole story, for whoever reads CI
    views = json.loads(done.stdout)
    main, urgent = views["main"], views["urgent"]

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
    assert os.environ.get("AWS_SECRET_ACCESS_KEY", "never set") not in json.dumps(views)
