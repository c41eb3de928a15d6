"""msrun by hand, beside which a gang's start is measured: the same program, no supervisor, no shim and no agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs import contract
from tests.support.ray_hosts import Cluster

_BIN = Path(sys.executable).parent
_MSRUN = (str(_BIN / "msrun"), "--join=True", "--tail_worker_log=2")
_WAIT_S = 300.0  # for a first step, however slow the machine is
_FREE_PORT = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"


def on_this_machine(
    folder: Path, program: Sequence[str], *, workers: int = 2, env: dict[str, str] | None = None
) -> float:
    """Seconds from msrun's start to the end of the program's first step. Works in `folder`, which must not be there."""
    reports = folder / "reports"
    reports.mkdir(parents=True)
    options = [f"--worker_num={workers}", f"--local_worker_num={workers}", f"--log_dir={folder / 'logs'}"]
    told = {**os.environ, **_told("bare", f"file://{folder / 'store'}", reports), **(env or {})}
    began = time.time()
    done = subprocess.run([*_MSRUN, *options, *program], env=told, cwd=folder, check=False, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"msrun by hand: {done.stdout.decode(errors='replace')[-2000:]}")
    return _first_step_at(reports) - began


def over_two_hosts(cluster: Cluster, job: str, program: Sequence[str]) -> float:
    """The same with one rank on each of two hosts."""
    assert cluster.outside is not None
    address = cluster.hosts.address(1)
    port = cluster.hosts.run(1, [sys.executable, "-c", _FREE_PORT], check=True).stdout.strip()
    options = ["--worker_num=2", "--local_worker_num=1", f"--master_addr={address}", f"--master_port={port}"]
    began = time.time()
    nodes = []
    for rank, host in enumerate((1, 2)):
        own = cluster.hosts.own(host) / job
        own.mkdir()
        env = {**cluster.env, **_told(job, f"{cluster.outside.objects}/{job}", own), contract.ENV_LOCAL_RANKS: "1"}
        line = [*_MSRUN, *options, f"--log_dir=/tmp/{job}", f"--node_rank={rank}", *program]
        nodes.append(cluster.hosts.start(host, line, own / "msrun.log", env))
    folder = cluster.folder / job
    deadline = time.monotonic() + _WAIT_S
    while not (folder / "rank_0.json").exists():
        if time.monotonic() > deadline or nodes[0].poll() is not None:
            raise RuntimeError(f"msrun by hand: {(folder / 'msrun.log').read_text()[-2000:]}")
        time.sleep(0.1)
    (folder / "outcome_0.json").touch()  # our shim's word, for which the canary's scheduler process waits
    for node in nodes:
        node.wait(timeout=_WAIT_S)
    return _first_step_at(folder) - began


def _told(job: str, store: str, reports: Path) -> dict[str, str]:
    """What the contract tells a program of its place, as we do it."""
    return {
        "PATH": f"{_BIN}:{os.environ['PATH']}",
        contract.ENV_ATTEMPT: "1",
        contract.ENV_JOB: job,
        contract.ENV_STORE: store,
        contract.ENV_REPORT_DIR: str(reports),
    }


def _first_step_at(reports: Path) -> float:
    said = json.loads((reports / "rank_0.json").read_text())
    if said["heartbeat"]["first_step_at"] is None:
        raise RuntimeError(f"msrun by hand: {said['reason']}")
    return float(said["heartbeat"]["first_step_at"])
