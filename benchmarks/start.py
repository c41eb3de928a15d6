"""From `submit` on a warm cluster to the first step, beside a bare msrun of the same program by hand.

On this machine with its own Ray node; and over two hosts, which here share its CPUs: what each host's agent, supervisor
and shim do at the same time adds up there.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.hosts import bare_msrun as bare_over_hosts
from benchmarks.pairs import Result, in_turn
from orchestrator.store import Store
from tests.support import hosts as hosts_support
from tests.support.radosgw import missing_for_radosgw
from tests.support.ray_hosts import lone_hosts
from tests.support.rex import COUNTING, Rex, counting_spec

_IDLE_S = 4.0  # what the run before leaves to be done is done by then


def run() -> list[Result]:
    return [*on_one_machine(), *over_two_hosts()]


def on_one_machine() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="rex") as name:
        folder = Path(name)
        rex = Rex(folder / "home")
        try:
            if (up := rex("up")).returncode != 0:
                raise RuntimeError(up.stderr)
            spec = counting_spec(folder / "job.yaml", "--steps", 3)
            numbers = itertools.count()

            def submitted() -> float:
                time.sleep(_IDLE_S)
                began = time.time()
                job = rex.submit(spec)
                rex.finish(job)
                first = rex.store.attempts(job)[0].first_step_at
                assert first is not None
                return first - began

            def by_hand() -> float:
                time.sleep(_IDLE_S)
                return bare_msrun(folder / f"bare-{next(numbers)}")

            pairs = in_turn(submitted, by_hand)
        finally:
            rex("down", "--now")
    note = "process start of `rexctl submit` to the end of the first step; 2 workers, no MindSpore in the program"
    return [Result(name="submit to first step", peer="msrun by hand", pairs=pairs, note=note)]


def over_two_hosts() -> list[Result]:
    lacking = hosts_support.missing() or missing_for_radosgw()
    if lacking:
        print(f"not run: several hosts on one machine: {lacking}", file=sys.stderr)
        return []
    with lone_hosts(2) as cluster:
        numbers = itertools.count()

        def submitted() -> float:
            time.sleep(_IDLE_S)
            began = time.time()
            job = cluster.submit_canary("--steps", 3, "--step_s", 0.1, nodes=2)
            cluster.finish(job)
            first = Store(cluster.home.database_url).attempts(job)[0].first_step_at
            assert first is not None
            return first - began

        def by_hand() -> float:
            time.sleep(_IDLE_S)
            return bare_over_hosts(cluster, f"bare-{next(numbers)}")

        pairs = in_turn(submitted, by_hand)
    note = "as above, with the canary; both hosts, their msruns and ours share this machine's CPUs"
    return [Result(name="submit to first step, 2 hosts", peer="msrun by hand on both", pairs=pairs, note=note)]


def bare_msrun(folder: Path) -> float:
    """Seconds from msrun's start to the end of the program's first step."""
    (folder / "reports").mkdir(parents=True)
    bin_dir = Path(sys.executable).parent
    env = {
        **os.environ,
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "REX_ATTEMPT": "1",
        "REX_JOB": "bare",
        "REX_STORE": f"file://{folder / 'store'}",
        "REX_REPORT_DIR": str(folder / "reports"),
    }
    options = ["--worker_num=2", "--local_worker_num=2", "--join=True", f"--log_dir={folder / 'logs'}"]
    began = time.time()
    command = [str(bin_dir / "msrun"), *options, "--tail_worker_log=2", COUNTING, "--steps", "3"]
    subprocess.run(command, env=env, cwd=folder, check=True, capture_output=True)
    report = json.loads((folder / "reports" / "rank_0.json").read_text())
    return float(report["heartbeat"]["first_step_at"]) - began
