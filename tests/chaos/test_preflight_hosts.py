"""Nodes that differ, on three hosts that share nothing but a folder for the state directory: real Ray nodes.

The first is as it should be. The second has another MindSpore (its installed metadata says so). The third has an older
copy of our packages, which cannot even be imported, and too small a disk for work_root.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.preflight.code import read_code
from cluster.preflight.facts import PACKAGES, installed_folders
from orchestrator.store import Store
from tests.support import hosts as hosts_support
from tests.support.hosts import WORK, Hosts
from tests.support.ray_hosts import QUIET, RAY, Cluster
from tests.support.rex import REXCTL, counting_spec

OTHER_MINDSPORE = "rexhost2 has MindSpore 2.9.0 instead of 2.10.0"


class Differing(Cluster):
    """Three hosts with a Ray node each, every one with a work_root of its own."""

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(hosts, min_free_disk_gib=0.03)
        self.store = Store(self.home.database_url)

    def start_ray(self, host: int, python_path: str) -> None:
        """One after the other: a node gives up that does not get its head's answer within 30 s."""
        first = self.hosts.address(1)
        where = ["--head", "--port=6379", "--include-dashboard=false"] if host == 1 else [f"--address={first}:6379"]
        command = [RAY, "start", "--block", "--num-cpus=2", f"--node-ip-address={self.hosts.address(host)}", *where]
        log = self.folder / f"ray-{host}.log"
        self.hosts.start(host, command, log, {**QUIET, **({"PYTHONPATH": python_path} if python_path else {})})
        self.until(f"Ray on host {host}", lambda: "Ray runtime started" in log.read_text())

    def refused(self, *arguments: str) -> str:
        """What rexctl says of bad input."""
        done = self.hosts.run(1, [REXCTL, *arguments], env=self.rex_env, timeout=120)
        assert done.returncode == 2, (done.stdout, done.stderr)
        return done.stderr

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["host"]: node for node in json.loads(self.rexctl("nodes", "--json"))}

    def until(self, what: str, wanted: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 180
        while not (found := wanted()):
            logs = [self.home.logs / "control.log", *self.folder.glob("ray-*.log")]
            seen = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs if log.exists())
            assert time.monotonic() < deadline, f"waited in vain for {what}: {seen}"
            time.sleep(0.2)
        return found

    def submit_to(self, gang: dict[str, Any], *arguments: object, **more: Any) -> str:
        spec = counting_spec(self.folder / "job.yaml", *arguments, gang=gang, **more)
        return str(json.loads(self.rexctl("submit", str(spec), "--json"))["job_id"])

    def mend_disk(self) -> None:
        """The third host's disk gets larger; the census notices by itself."""
        done = self.hosts.run(3, ["mount", "-o", "remount,size=256m", WORK])
        assert done.returncode == 0, done.stderr
        rows = self.store.nodes
        self.until("the mended node", lambda: any(n["host"] == "rexhost3" and n["problem"] == "" for n in rows()))


def looked_at(node: Any) -> bool:
    return "looked_at" in (node["preflight"] or {})


def other_mindspore(folder: Path) -> str:
    """A folder for PYTHONPATH in which MindSpore's metadata says 2.9.0."""
    about = folder / "other" / "mindspore-2.9.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mindspore\nVersion: 2.9.0\n")
    return str(about.parent)


def older_code(folder: Path) -> str:
    """A folder for PYTHONPATH with packages of ours that nobody can run."""
    ignore = shutil.ignore_patterns("__pycache__", "lib")
    for name, installed in installed_folders().items():
        shutil.copytree(installed, folder / "older" / name, ignore=ignore)
    for path in ("jobs/contract.py", "cluster/node/agent.py", "cluster/node/supervisor.py"):
        (folder / "older" / path).write_text("raise ImportError('this is the older code')\n")
    return str(folder / "older")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Differing]:
    lacking = hosts_support.missing()
    if lacking is not None:
        pytest.skip(f"not run: hosts in network namespaces: {lacking}")
    with tempfile.TemporaryDirectory(prefix="rexhosts", dir="/var/tmp") as name:
        folder = Path(name)
        with Hosts(folder, 3) as hosts:
            made = Differing(hosts)
            small = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", WORK]
            assert hosts.run(3, small).returncode == 0
            for host, path in ((1, ""), (2, other_mindspore(folder)), (3, older_code(folder))):
                made.start_ray(host, path)
            made.rexctl("up")
            made.until("three nodes", lambda: len([n for n in made.store.nodes() if n["alive"]]) == 3)
            made.until("every preflight", lambda: all(looked_at(node) for node in made.store.nodes()))
            yield made
            made.rexctl("down", "--now")


def test_differing_mindspore_and_a_full_disk_leave_nodes_out_by_name(cluster: Differing) -> None:
    nodes = cluster.nodes()
    assert nodes["rexhost1"]["state"] == "usable" and nodes["rexhost1"]["problem"] == ""
    assert (nodes["rexhost2"]["state"], nodes["rexhost2"]["problem"]) == ("left out", OTHER_MINDSPORE)
    assert nodes["rexhost3"]["state"] == "left out"
    assert nodes["rexhost3"]["problem"] == (
        "rexhost3 has 0.01 GiB free for /tmp/rexwork instead of at least 0.03 (min_free_disk_gib)"
    )
    assert len({node["incarnation"] for node in nodes.values()}) == 3
    text = cluster.rexctl("nodes")
    assert OTHER_MINDSPORE in text and "left out" in text


def test_gang_larger_than_the_usable_nodes_is_refused_and_names_what_is_left_out(cluster: Differing) -> None:
    spec = counting_spec(cluster.folder / "wide.yaml", gang={"nodes": 2, "workers_per_node": 1})
    said = cluster.refused("submit", str(spec))
    assert "gang.nodes is 2, the cluster has 1 node that can be used; left out: " in said
    assert OTHER_MINDSPORE in said and "rexhost3 has 0.01 GiB free" in said


def test_node_with_older_code_runs_the_control_planes_own(cluster: Differing) -> None:
    cluster.mend_disk()
    seen = cluster.nodes()["rexhost3"]
    ours = read_code().digest
    assert seen["preflight"]["code"] != ours and seen["preflight"]["code_root"] == f"{WORK}/code/{ours}"
    ended = cluster.finish(cluster.submit("--steps", 10))
    assert ended["state"] == "succeeded", ended
    assert sorted(ended["attempts"][0]["hosts"]) == ["rexhost1", "rexhost3"] and len(ended["attempts"]) == 1
    assert cluster.nodes()["rexhost1"]["preflight"]["code_root"] == "", "where nothing differs nothing is brought"


def test_missing_data_path_on_one_node_only_fails_the_job_and_names_the_node(cluster: Differing) -> None:
    cluster.mend_disk()
    assert cluster.hosts.run(1, ["mkdir", "-p", "/tmp/rexdata"]).returncode == 0
    job = cluster.submit("--steps", 10, data={"dir": "/tmp/rexdata"})
    ended = cluster.finish(job)
    assert (ended["state"], ended["cause"]) == ("failed", "config")
    assert ended["detail"] == "data.dir /tmp/rexdata on rexhost3: No such file or directory"


def test_job_that_waits_for_want_of_a_left_out_node_names_it(cluster: Differing) -> None:
    cluster.mend_disk()
    gang = {"nodes": 1, "workers_per_node": 1, "cpus_per_worker": 2}
    first = cluster.submit_to(gang, "--steps", 100_000)
    cluster.until("its first step", lambda: cluster.status(first)["progress"]["step"] > 0)
    second = cluster.submit_to({**gang, "nodes": 2}, "--steps", 10)
    waiting = cluster.until("a reason", lambda: "left out" in (said := cluster.status(second)["waiting"]) and said)
    assert first in waiting and waiting.endswith(f"left out: {OTHER_MINDSPORE}")
    assert OTHER_MINDSPORE in cluster.rexctl("why", second)
    holder = next(node for node in cluster.nodes().values() if node["jobs"])
    assert holder["jobs"] == [first]
    for job in (second, first):
        cluster.rexctl("cancel", job)
        cluster.finish(job)


def test_every_package_that_is_brought_is_one_that_nodes_run() -> None:
    assert set(PACKAGES) == set(installed_folders())
