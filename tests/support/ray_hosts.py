"""A Ray cluster over several hosts, one node on each; the control plane runs on the first."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from orchestrator.settings import Home
from orchestrator.store import Store
from orchestrator.view import job_view
from tests.support.hosts import Hosts
from tests.support.rex import REXCTL, counting_spec

RAY = str(Path(sys.executable).with_name("ray"))
_RAY_NODE = [RAY, "start", "--block", "--num-cpus=2", "--include-log-monitor=false"]
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


class Cluster:
    """The control plane's state directory and the attempts' folder are shared with the test, by path."""

    def __init__(self, hosts: Hosts, folder: Path, **settings: Any) -> None:
        self.hosts, self.folder = hosts, folder
        path = folder / "home"
        path.mkdir()
        values = {"ray_address": f"{hosts.address(1)}:6379", "work_root": str(folder / "work"), **settings}
        (path / "config.yaml").write_text(yaml.safe_dump(values))
        self.home = Home(path)

    def up(self) -> None:
        """Ray on every host, then the control plane."""
        first = self.hosts.address(1)
        head = [*_RAY_NODE, "--head", "--port=6379", "--include-dashboard=false"]
        self.hosts.start(1, [*head, f"--node-ip-address={first}"], self.folder / "ray-1.log", QUIET)
        for host in range(2, self.hosts.count + 1):
            self.join(host)
            self._wait_for_ray(host)  # one by one: Ray gives up when its processes take 30 s to start
        self.rexctl("up")
        self.wait_for_nodes(self.hosts.count)

    def join(self, host: int) -> None:
        """Start a Ray node on a host that has none."""
        node = [*_RAY_NODE, f"--address={self.hosts.address(1)}:6379"]
        address = f"--node-ip-address={self.hosts.address(host)}"
        self.hosts.start(host, [*node, address], self.folder / f"ray-{host}.log", QUIET)

    def _wait_for_ray(self, host: int) -> None:
        log = self.folder / f"ray-{host}.log"
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text(errors="replace"):
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.2)

    def renew(self, host: int) -> None:
        """Boot a host anew, whatever state it is in, and have its Ray node join again."""
        if self.hosts.is_up(host):
            self.hosts.kill(host)
        self.hosts.heal(host)
        self.wait_for_nodes(self.hosts.count - 1)
        self.hosts.boot(host)
        self.join(host)
        self.wait_for_nodes(self.hosts.count)

    def wait_for_nodes(self, count: int) -> None:
        deadline = time.monotonic() + 90
        while len([node for node in Store(self.home.database_url).nodes() if node["alive"]]) != count:
            assert time.monotonic() < deadline, Store(self.home.database_url).nodes()
            time.sleep(0.2)

    def rexctl(self, *arguments: str) -> Any:
        done = self.hosts.run(1, [REXCTL, *arguments], env={"REX_HOME": str(self.home.path)}, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *arguments: object, nodes: int = 2, **more: Any) -> str:
        """Submit the counting program with one rank on each node."""
        spec = counting_spec(self.folder / "job.yaml", *arguments, gang={"nodes": nodes, "workers_per_node": 1}, **more)
        return str(json.loads(self.rexctl("submit", str(spec), "--json"))["job_id"])

    def submit_canary(self, *arguments: object, nodes: int) -> str:
        """Submit the product's own canary with one rank on each node."""
        spec = {
            "name": "canary",
            "gang": {"nodes": nodes, "workers_per_node": 1},
            "program": {"module": "cluster.chaos.canary", "args": [str(argument) for argument in arguments]},
            "retry": {"backoff_s": 0.2},
        }
        path = self.folder / "canary.yaml"
        path.write_text(yaml.safe_dump(spec))
        return str(json.loads(self.rexctl("submit", str(path), "--json"))["job_id"])

    def status(self, job: str) -> dict[str, Any]:
        return job_view(Store(self.home.database_url), job, mlflow_uri="")

    def wait(self, job: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 150
        while not wanted(status := self.status(job)):
            assert time.monotonic() < deadline, json.dumps({**status, "log": self.log()}, indent=1)
            time.sleep(0.2)
        return status

    def log(self) -> list[str]:
        """The control plane's last words."""
        return (self.home.logs / "control.log").read_text(errors="replace").splitlines()[-20:]

    def finish(self, job: str) -> dict[str, Any]:
        return self.wait(job, lambda s: s["state"] in ("succeeded", "failed", "cancelled"))

    def left_over(self) -> list[str]:
        """Command lines of the counting program on any host that is up: one that is down has no process."""
        hosts = [host for host in range(1, self.hosts.count + 1) if self.hosts.is_up(host)]
        return [args for host in hosts for args in self.hosts.processes(host) if "counting_program" in args]

    def record(self, job: str, attempt: int, node_rank: int, name: str) -> dict[str, Any]:
        """What the supervisor of that node left: start.json or ended.json."""
        path = self.folder / "work" / job / f"attempt-{attempt}" / f"node-{node_rank}" / name
        read: dict[str, Any] = json.loads(path.read_text())
        return read
