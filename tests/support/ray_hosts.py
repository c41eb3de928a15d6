"""A Ray cluster over several hosts, one node on each; the control plane runs on the first and keeps its home there."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.node.ending import ENV_SUPERVISES
from jobs.contract import ENV_TOKEN
from orchestrator.settings import Home
from orchestrator.store import Store
from orchestrator.view import job_view
from tests.support.hosts import WORK, Hosts
from tests.support.outside import Outside
from tests.support.rex import REXCTL, counting_spec

RAY = str(Path(sys.executable).with_name("ray"))
_RAY_NODE = [RAY, "start", "--block", "--num-cpus=2", "--include-log-monitor=false"]
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
_DISK_BYTES = 256 << 20  # of each host that is alone, for its attempts
_SUPERVISORS_END_S = 60.0  # after its word that all is over a supervisor has the logs shipped, and ends
_CARRIERS = """
import sys
from pathlib import Path
for folder in Path("/proc").glob("[0-9]*"):
    try:
        words = (folder / "environ").read_bytes().split(b"\\0")
        if any(word.startswith(sys.argv[1].encode() + b"=") for word in words):
            print(folder.name, (folder / "cmdline").read_text().replace("\\0", " "))
    except OSError:
        continue  # it has ended meanwhile
"""


def all_are_heard(status: dict[str, Any], nodes: int) -> bool:
    """Has every rank sent its heartbeat, and every node answered the newest poll (gangs of a rank a node)?"""
    answered = [node for node in status["nodes"] if node["agent"] and node["supervisor"]]
    return len(status["ranks"]) == len(answered) == nodes


class Cluster:
    """Attempts lie below WORK on every host. `folder` is the first host's own, which the test sees at the same path.

    With `outside`, checkpoints and tracking go there; without, the hosts have to share their folder.
    """

    def __init__(self, hosts: Hosts, *, outside: Outside | None = None, **settings: Any) -> None:
        self.hosts, self.folder, self.outside = hosts, hosts.own(1), outside
        self.env = {**QUIET, **(outside.env if outside else {})}
        self._rays: dict[int, subprocess.Popen[bytes]] = {}
        path = self.folder / "rex"
        path.mkdir()
        values = {"ray_address": f"{hosts.address(1)}:6379", "work_root": WORK, **settings}
        if outside is not None:
            values |= {"objects": outside.objects, "mlflow_uri": outside.mlflow_uri}
        (path / "config.yaml").write_text(yaml.safe_dump(values))
        self.home = Home(path)

    @property
    def credentials(self) -> dict[str, Any]:
        """What a job file has to name for its processes to reach the store."""
        return {"from_env": sorted(self.outside.env)} if self.outside else {}

    def up(self) -> None:
        """Ray on every host, one by one: it gives up when its processes take 30 s to start. Then the control plane."""
        for host in range(1, self.hosts.count + 1):
            self.join(host)
        self.rexctl("up")
        self.wait_for_nodes(self.hosts.count)

    def join(self, host: int, env: dict[str, str] | None = None) -> None:
        """Start a Ray node on a host that has none, and wait until it runs."""
        where = ["--head", "--port=6379", "--include-dashboard=false"]
        if host > 1:
            where = [f"--address={self.hosts.address(1)}:6379"]
        command = [*_RAY_NODE, f"--node-ip-address={self.hosts.address(host)}", *where]
        log = self.hosts.folder / f"ray-{host}.log"
        for last in (False, False, True):
            log.write_bytes(b"")
            self._rays[host] = self.hosts.start(host, command, log, {**self.env, **(env or {})})
            try:
                self._wait_for_ray(host)
                break
            except AssertionError:  # its processes took longer than it waits for them: it has ended
                if last or self.has_ray(host):
                    raise

    def has_ray(self, host: int) -> bool:
        """Does the host's Ray node still run?"""
        return self._rays[host].poll() is None

    def _wait_for_ray(self, host: int) -> None:
        log = self.hosts.folder / f"ray-{host}.log"
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text(errors="replace"):
            assert time.monotonic() < deadline and self.has_ray(host), log.read_text(errors="replace")
            time.sleep(0.2)

    def heal(self, host: int) -> None:
        """Put the host's cable back in. A Ray node that was called dead meanwhile has ended itself: it gets another."""
        self.hosts.heal(host)
        if not self.has_ray(host):
            self.join(host)

    def renew(self, host: int, env: dict[str, str] | None = None) -> None:
        """Boot a host anew, whatever state it is in, and have its Ray node join again (with that environment)."""
        if self.hosts.is_up(host):
            self.hosts.kill(host)
        self.hosts.heal(host)
        self.wait_for_nodes(self.hosts.count - 1)
        self.hosts.boot(host)
        self.join(host, env)
        self.wait_for_nodes(self.hosts.count)

    def mend(self) -> None:
        """Every host up, on the network and with a Ray node that runs, whatever a test has left behind."""
        deadline = time.monotonic() + 300
        hosts = range(1, self.hosts.count + 1)
        while self._num_alive() != self.hosts.count or not all(self.has_ray(host) for host in hosts):
            assert time.monotonic() < deadline, Store(self.home.database_url).nodes()
            for host in hosts:
                if not self.hosts.is_up(host):
                    self.hosts.boot(host)
                self.hosts.heal(host)
                if not self.has_ray(host):
                    self.join(host)
            time.sleep(0.5)

    def _num_alive(self) -> int:
        return len([node for node in Store(self.home.database_url).nodes() if node["alive"]])

    def wait_for_nodes(self, count: int) -> None:
        deadline = time.monotonic() + 180
        while self._num_alive() != count:
            assert time.monotonic() < deadline, Store(self.home.database_url).nodes()
            time.sleep(0.2)

    @property
    def rex_env(self) -> dict[str, str]:
        return {**self.env, "REX_HOME": str(self.home.path)}

    def rexctl(self, *arguments: str) -> Any:
        done = self.hosts.run(1, [REXCTL, *arguments], env=self.rex_env, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *arguments: object, nodes: int = 2, **more: Any) -> str:
        """Submit the counting program with one rank on each node."""
        gang = {"nodes": nodes, "workers_per_node": 1}
        options = {"gang": gang, "credentials": self.credentials, **more}
        spec = counting_spec(self.folder / "job.yaml", *arguments, **options)
        return str(json.loads(self.rexctl("submit", str(spec), "--json"))["job_id"])

    def submit_canary(self, *arguments: object, nodes: int, **more: Any) -> str:
        """Submit the product's own canary with one rank on each node."""
        spec = {
            "name": "canary",
            "gang": {"nodes": nodes, "workers_per_node": 1},
            "program": {"module": "cluster.chaos.canary", "args": [str(argument) for argument in arguments]},
            "retry": {"backoff_s": 0.2},
            "credentials": self.credentials,
            **more,
        }
        path = self.folder / "canary.yaml"
        path.write_text(yaml.safe_dump(spec))
        return str(json.loads(self.rexctl("submit", str(path), "--json"))["job_id"])

    def status(self, job: str) -> dict[str, Any]:
        return job_view(Store(self.home.database_url), job, mlflow_uri="")

    def wait(self, job: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 300
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
        """Number and command line of every process of any attempt, on all hosts that are up: one that is down has none.

        Whatever an attempt runs is to be gone at once, its supervisors once they have had the logs shipped.
        """
        deadline = time.monotonic() + _SUPERVISORS_END_S
        while True:
            ranks, supervisors = self._carrying(ENV_TOKEN), self._carrying(ENV_SUPERVISES)
            if ranks or not supervisors or time.monotonic() > deadline:
                return ranks + supervisors
            time.sleep(0.2)

    def _carrying(self, name: str) -> list[str]:
        """The processes with that variable in their environment."""
        found = []
        for host in filter(self.hosts.is_up, range(1, self.hosts.count + 1)):
            done = self.hosts.run(host, [sys.executable, "-c", _CARRIERS, name])
            assert done.returncode == 0, done.stderr
            found += done.stdout.splitlines()
        return found

    def record(self, job: str, attempt: int, node_rank: int, name: str) -> dict[str, Any]:
        """What the supervisor of that node left: start.json or ended.json."""
        host = self.status(job)["attempts"][attempt - 1]["hosts"][node_rank]
        work = self.hosts.work(int(host.removeprefix("rexhost")))
        path = work / job / f"attempt-{attempt}" / f"node-{node_rank}" / name
        read: dict[str, Any] = json.loads(path.read_text())
        return read


@contextmanager
def lone_hosts(count: int, *, memory: int = 2 << 30, **settings: Any) -> Iterator[Cluster]:
    """A cluster over hosts that share nothing but an MLflow server and an S3 server with so many bytes of memory; up,
    and down afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="rexhosts", dir="/var/tmp") as name,
        Hosts(Path(name), count, alone=True, disk_bytes=_DISK_BYTES) as hosts,
        Outside(Path(name) / "outside", memory=memory) as outside,
    ):
        cluster = Cluster(hosts, outside=outside, **{"min_free_disk_gib": 0.01, **settings})
        cluster.up()
        yield cluster
        cluster.rexctl("down", "--now")
