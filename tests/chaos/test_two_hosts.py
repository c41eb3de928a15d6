"""A gang over two hosts that share nothing but a folder: real Ray nodes, real msrun on each."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.settings import Home
from orchestrator.store import Store
from orchestrator.view import job_view
from tests.support import hosts as hosts_support
from tests.support.hosts import Hosts
from tests.support.rex import REXCTL, counting_spec

RAY = str(Path(sys.executable).with_name("ray"))
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


class Cluster:
    """Two hosts with a Ray node each; the control plane runs on the first."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.home = Home(folder / "home")

    def rexctl(self, *arguments: str) -> Any:
        done = self.hosts.run(1, [REXCTL, *arguments], env={"REX_HOME": str(self.home.path)}, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self, job: str) -> dict[str, Any]:
        return job_view(Store(self.home.database_url), job, mlflow_uri="")

    def wait(self, job: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 150
        while not wanted(status := self.status(job)):
            assert time.monotonic() < deadline, json.dumps(status, indent=1)
            time.sleep(0.2)
        return status


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    lacking = hosts_support.missing()
    if lacking is not None:
        pytest.skip(f"not run: hosts in network namespaces: {lacking}")
    with tempfile.TemporaryDirectory(prefix="rexhosts", dir="/var/tmp") as name:
        folder = Path(name)
        with Hosts(folder, 2) as hosts:
            first = hosts.address(1)
            head = [RAY, "start", "--head", "--block", "--port=6379", "--include-dashboard=false", "--num-cpus=2"]
            hosts.start(1, [*head, f"--node-ip-address={first}"], folder / "ray-1.log", QUIET)
            node = [RAY, "start", "--block", f"--address={first}:6379", "--num-cpus=2"]
            hosts.start(2, [*node, f"--node-ip-address={hosts.address(2)}"], folder / "ray-2.log", QUIET)
            cluster = Cluster(hosts, folder)
            cluster.home.path.mkdir()
            settings = {"ray_address": f"{first}:6379", "work_root": str(folder / "work")}
            (cluster.home.path / "config.yaml").write_text(yaml.safe_dump(settings))
            cluster.home = Home(cluster.home.path)
            cluster.rexctl("up")
            deadline = time.monotonic() + 60
            while len([n for n in Store(cluster.home.database_url).nodes() if n["alive"]]) < 2:
                assert time.monotonic() < deadline, (folder / "ray-2.log").read_text()
                time.sleep(0.2)
            yield cluster
            cluster.rexctl("down", "--now")


def submit(cluster: Cluster, *arguments: object) -> str:
    spec = counting_spec(cluster.folder / "job.yaml", *arguments, gang={"nodes": 2, "workers_per_node": 1})
    return str(json.loads(cluster.rexctl("submit", str(spec), "--json"))["job_id"])


def left_over(cluster: Cluster) -> list[str]:
    return [args for host in (1, 2) for args in cluster.hosts.processes(host) if "counting_program" in args]


def test_gang_over_two_hosts_runs_to_its_end(cluster: Cluster) -> None:
    job = submit(cluster, "--steps", 30)
    ended = cluster.wait(job, lambda s: s["state"] in ("succeeded", "failed"))
    assert ended["state"] == "succeeded", ended
    assert sorted(ended["attempts"][0]["hosts"]) == ["rexhost1", "rexhost2"]
    assert left_over(cluster) == []


def test_first_fault_on_one_host_ends_the_gang_on_both_and_it_resumes(cluster: Cluster) -> None:
    job = submit(cluster, "--steps", 120, "--commit_every", 15)
    cluster.wait(job, lambda s: s["progress"]["step"] > 20 and s["checkpoint"] is not None)
    pids = cluster.hosts.run(2, ["pgrep", "-f", "^.*python.*counting_program.py --steps"]).stdout.split()
    assert pids
    cluster.hosts.run(2, ["kill", "-9", pids[-1]])
    ended = cluster.wait(job, lambda s: s["state"] in ("succeeded", "failed"))
    first, second = ended["attempts"]
    assert (ended["state"], first["cause"], second["cause"]) == ("succeeded", "crash", "done"), ended
    assert "killed by signal 9" in first["detail"]
    assert second["from_step"] >= 15
    assert left_over(cluster) == []


def test_more_nodes_than_the_cluster_has_is_refused(cluster: Cluster) -> None:
    spec = counting_spec(cluster.folder / "wide.yaml", gang={"nodes": 3, "workers_per_node": 1})
    done = cluster.hosts.run(1, [REXCTL, "submit", str(spec)], env={"REX_HOME": str(cluster.home.path)})
    assert done.returncode == 2 and "gang.nodes is 3, the cluster has 2 nodes" in done.stderr
