"""`make chaos-short` and `make chaos`: faults on three hosts, with real training; the reports in docs/."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from orchestrator.chaos.plan import KINDS
from tests.support import hosts as hosts_support
from tests.support.hands import Hands
from tests.support.hosts import Hosts
from tests.support.ray_hosts import Cluster
from tests.support.rex import REXCTL

DOCS = Path(__file__).parents[2] / "docs"
LEASE_S = 12.0
NOT_HERE = {
    "fill_disk": "the hosts share this machine's disk; tests/chaos/test_preflight_hosts.py gives one of its own",
    "slow_network": "needs netem in the kernel",
    "blink_network": "the healing hand boots a host anew, which is no blink",
    "stop_mlflow": "tests/integration/test_faults.py",
    "stop_store": "tests/chaos/test_checkpoint_faults.py",
}
# ReXNet 0.9 on the digits, small enough to be started hundreds of times.
TRAINING = {
    "name": "rexnet",
    "gang": {"nodes": 2, "workers_per_node": 1},
    "program": {
        "module": "rexnet.train",
        "args": [
            "--config=quickstart", "--image_resize=16", "--batch_size=16", "--global_batch=32", "--max_steps=150",
            "--ckpt_every=25 steps", "--val_interval=1000", "--drop_rate=0.2",
        ],
    },
    "data": {"builtin": "digits"},
    "retry": {"backoff_s": 0.5},
    "limits": {"hang_s": 20},
}  # fmt: skip


def kinds() -> list[str]:
    """What can be tried on hosts that are network namespaces of one machine."""
    return [kind for kind in KINDS if kind not in NOT_HERE]


def run(cluster: Cluster, report: Path, *, timeout_s: float, **plan: Any) -> subprocess.CompletedProcess[str]:
    """`rexctl chaos` on the first host, with hands outside for cables and power."""
    with Hands(cluster) as hands:
        path = cluster.folder / "plan.yaml"
        common = {"kinds": kinds(), "spare": ["rexhost1"], "commands": hands.commands()}
        path.write_text(yaml.safe_dump({**common, **plan}))
        env = {"REX_HOME": str(cluster.home.path)}
        return cluster.hosts.run(1, [REXCTL, "chaos", str(path), "--report", str(report)], env=env, timeout=timeout_s)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="faults (default 200)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--training", action="store_true", help="real training instead of the canary")
    parser.add_argument("--page", default="chaos-200", help="name of the report in docs/")
    given = parser.parse_args()
    lacking = hosts_support.missing()
    if lacking is not None:
        print(f"chaos: several hosts on one machine: {lacking}", file=sys.stderr)
        return 3
    canary: dict[str, Any] = {"nodes": 2, "steps": 80, "step_s": 0.1, "commit_every": 10}
    with tempfile.TemporaryDirectory(prefix="rexhosts", dir="/var/tmp") as name, Hosts(Path(name), 3) as hosts:
        cluster = Cluster(hosts, Path(name), lease_s=LEASE_S)
        cluster.up()
        if given.training:
            (cluster.folder / "training.yaml").write_text(yaml.safe_dump(TRAINING))
            canary = {"job": "training.yaml"}
        report = DOCS / f"{given.page}.md"
        done = run(cluster, report, timeout_s=48 * 3600, seed=given.seed, count=given.count, canary=canary, pause_s=6.0)
        print(done.stderr, done.stdout, sep="\n")
        cluster.rexctl("down", "--now")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
