"""Real training with one CPU crowded: the rank that works there is named, with its host, and no other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.node.processes import die_with_parent
from tests.campaigns.hosts import TRAINING
from tests.support.rex import Rex

_NEIGHBOURS = 4  # enough to stand out however busy both CPUs are with other tests


@contextmanager
def crowded(cpu: int) -> Iterator[None]:
    """A CPU that others compute on."""
    program = f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    neighbours = [
        subprocess.Popen([sys.executable, "-c", program], preexec_fn=die_with_parent)  # noqa: PLW1509
        for _ in range(_NEIGHBOURS)
    ]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def stands_out(straggler: dict[str, Any] | None, rank: int) -> bool:
    return straggler is not None and straggler["rank"] == rank and straggler["work_s"] > 1.5 * straggler["others_s"]


def test_rank_on_a_crowded_cpu_is_named_while_real_training_goes_on(rex: Rex, tmp_path: Path) -> None:
    program = {**TRAINING["program"], "args": [*TRAINING["program"]["args"], "--max_steps=3000"]}
    spec = {**TRAINING, "program": program, "gang": {"nodes": 1, "workers_per_node": 2}}
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(spec))
    job = rex.submit(path)
    status = rex.wait(job, lambda s: s["progress"]["step"] > 5 and len(s["ranks"]) == 2)
    pids = {rank["rank"]: rank["pid"] for rank in status["ranks"]}
    (first,), (second,) = (os.sched_getaffinity(pids[rank]) for rank in (0, 1))
    assert first != second
    with crowded(second):
        status = rex.wait(job, lambda s: stands_out(s["straggler"], 1))
        said = rex("status", job).stdout
    assert status["straggler"]["host"] == socket.gethostname()
    assert f"rank 1 on {socket.gethostname()} works" in said
    rex("cancel", job)
    assert rex.finish(job)["state"] == "cancelled"
