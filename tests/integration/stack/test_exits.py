"""What a user is told of real ends: a master port taken, a kill for memory; and what msrun binds workers to."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.node.binding import numa_of_cpus, problem
from cluster.outcome.last_words import _cgroup_file
from orchestrator.settings import Home
from tests.support.record_exits import PROGRAM, limited_cgroup
from tests.support.rex import Rex


def ending_spec(path: Path, *way: str, **more: Any) -> Path:
    spec = {
        "name": "ending",
        "gang": {"nodes": 1, "workers_per_node": 1, **more.pop("gang", {})},
        "program": {"script": PROGRAM, "args": list(way)},
        "retry": {"backoff_s": 0.1, "crash": 0},
        **more,
    }
    path.write_text(yaml.safe_dump(spec))
    return path


def attempt_folder(home: Home, job: str, number: int) -> Path:
    return Path(home.work_root) / job / f"attempt-{number}" / "node-0"


def test_master_port_taken_is_told_by_node_and_port_and_the_next_attempt_succeeds(rex: Rex, tmp_path: Path) -> None:
    """Somebody who may share an address (SO_REUSEADDR) listens there in the seconds before msrun's scheduler does."""
    job = rex.submit(ending_spec(tmp_path / "meet.yaml", "meet"))
    start = attempt_folder(rex.home, job, 1) / "start.json"
    deadline = time.monotonic() + 90
    while not start.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    facts = json.loads(start.read_text())
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind((facts["master_addr"], facts["master_port"]))
        thief.listen()
        ended = rex.finish(job)
    first, second = ended["attempts"]
    assert (ended["state"], first["cause"], second["cause"]) == ("succeeded", "infrastructure", "done"), ended
    assert (first["end"]["kind"], first["end"]["host"]) == ("msrun_scheduler", socket.gethostname())
    where = f"{facts['master_addr']}:{facts['master_port']}"
    said = (
        f"msrun's scheduler process on {socket.gethostname()} exited 1 (another process holds the master port {where})"
    )
    assert first["detail"].startswith(said)
    other = json.loads((attempt_folder(rex.home, job, 2) / "start.json").read_text())
    assert other["master_port"] != facts["master_port"]
    assert "hint: the next attempt takes another port" in rex("status", job).stdout


def test_kill_for_memory_is_told_as_such_and_ends_on_the_budget_of_crashes(rex: Rex, tmp_path: Path) -> None:
    ours = _cgroup_file()
    if os.getuid() != 0 or ours is None or not os.access(ours.parent, os.W_OK):
        pytest.skip("not run: a memory cgroup needs root")
    with limited_cgroup(200) as group:
        ended = rex.finish(rex.submit(ending_spec(tmp_path / "eat.yaml", "eat_in", str(group))))
    (attempt,) = ended["attempts"]
    assert (ended["state"], attempt["cause"]) == ("failed", "crash"), ended
    assert (attempt["end"]["kind"], attempt["end"]["rank"]) == ("out_of_memory", 0)
    host = socket.gethostname()
    assert re.match(
        rf"rank 0 on {host} was killed by signal 9 \(out of memory: the kernel killed 1 ", attempt["detail"]
    )
    assert "crash, out of memory" in rex("events", ended["job_id"]).stdout


def test_workers_run_on_the_cpus_that_msrun_was_told_to_bind(rex: Rex, tmp_path: Path) -> None:
    unbound = problem("cores", socket.gethostname())
    if unbound is not None:
        pytest.skip(f"not run: {unbound}")
    spec = ending_spec(tmp_path / "bound.yaml", "affinity", gang={"workers_per_node": 2, "bind": "cores"})
    job = rex.submit(spec)
    ended = rex.finish(job)
    assert ended["state"] == "succeeded", ended
    cpus = ended["nodes"][0]["cpus"]
    logs = attempt_folder(rex.home, job, 1) / "logs"
    found = [re.findall(r"runs on CPUs \[(.*)\]", (logs / f"worker_{rank}.log").read_text()) for rank in (0, 1)]
    assert found == [[str(cpus[0])], [str(cpus[1])]]


def listed(text: str) -> set[int]:
    """The numbers of a list as the kernel writes it: 0-2,5."""
    ends = [part.partition("-") for part in text.split(",")]
    return {number for first, _, last in ends for number in range(int(first), int(last or first) + 1)}


def test_memory_is_that_of_the_bound_cpus_or_refused_by_name_where_msrun_would_not_bind(
    rex: Rex, tmp_path: Path
) -> None:
    unbound = problem("numa", socket.gethostname())  # for want of numactl, as a rule
    ended = rex.finish(rex.submit(ending_spec(tmp_path / "numa.yaml", "affinity", gang={"bind": "numa"})))
    if unbound is None:
        assert ended["state"] == "succeeded", ended
        said = (attempt_folder(rex.home, ended["job_id"], 1) / "logs" / "worker_0.log").read_text()
        cpus = ended["nodes"][0]["cpus"]
        nodes = {numa_of_cpus()[cpu] for cpu in cpus}
        bound = re.findall(r"'bind[^:']*:([\d,-]+)'", said)
        assert f"runs on CPUs {cpus}" in said and [listed(text) for text in bound] == [nodes], said
        return
    assert (ended["state"], ended["cause"], ended["detail"]) == ("failed", "config", unbound)
    assert ended["attempts"][0]["end"]["host"] == socket.gethostname()
