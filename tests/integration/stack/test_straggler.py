"""The rank that the others wait for is named, with its host."""

from __future__ import annotations

import socket
from pathlib import Path

import yaml

from tests.campaigns.hosts import TRAINING
from tests.support import crowded_train
from tests.support.rex import Rex, counting_spec


def test_rank_on_a_crowded_cpu_is_named_while_real_training_goes_on(rex: Rex, tmp_path: Path) -> None:
    program = {"script": crowded_train.__file__, "args": [*TRAINING["program"]["args"], "--epoch_size=100"]}
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump({**TRAINING, "program": program, "gang": {"nodes": 1, "workers_per_node": 2}}))
    job = rex.submit(path)
    status = rex.wait(job, lambda s: s["straggler"] is not None)
    said = rex("status", job).stdout
    slow = status["straggler"]
    assert (slow["rank"], slow["host"]) == (crowded_train.CROWDED_RANK, socket.gethostname())
    assert f"rank {slow['rank']} on {slow['host']} works" in said and "they wait for it" in said
    rex("cancel", job)
    assert rex.finish(job)["state"] == "cancelled"


def test_rank_that_waits_for_its_data_is_named(rex: Rex, tmp_path: Path) -> None:
    job = rex.submit(counting_spec(tmp_path / "job.yaml", "--steps", 5000, "--slow_data_rank", 1, name="slow-data"))
    slow = rex.wait(job, lambda s: s["straggler"] is not None)["straggler"]
    assert slow["rank"] == 1 and slow["work_s"] > 0.04, "each of its steps takes 50 ms"
    rex("cancel", job)
    assert rex.finish(job)["state"] == "cancelled"
