"""Logs of hosts that share nothing: followed while they are written, from the store afterwards, of a host that is gone.

The one thing that both hosts reach is an S3 server (moto) at this machine's address.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.settings import Home
from orchestrator.store import Store
from orchestrator.view import job_view
from tests.conformance.backends import MotoServer, aws_environment, make_bucket
from tests.support import hosts as hosts_support
from tests.support.hosts import WORK, Hosts
from tests.support.rex import REXCTL, counting_spec

RAY = str(Path(sys.executable).with_name("ray"))
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
FAIL_AT, STEPS = 150, 180


class Cluster:
    """Two Ray nodes whose attempts lie on their own disks; rexctl runs on the first."""

    def __init__(self, hosts: Hosts, folder: Path, aws: dict[str, str]) -> None:
        self.hosts, self.folder, self.aws = hosts, folder, aws
        self.home = Home(folder / "home")

    @property
    def env(self) -> dict[str, str]:
        return {"REX_HOME": str(self.home.path), **QUIET, **self.aws}

    def rexctl(self, *arguments: str, code: int = 0) -> Any:
        done = self.hosts.run(1, [REXCTL, *arguments], env=self.env, timeout=600)
        assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr)
        return done

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.rexctl("logs", "--json", *arguments).stdout.splitlines()]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    lacking = hosts_support.missing()
    if lacking is not None:
        pytest.skip(f"not run: hosts in network namespaces: {lacking}")
    with (
        tempfile.TemporaryDirectory(prefix="rexlogs", dir="/var/tmp") as name,
        Hosts(Path(name), 2) as hosts,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder, server = Path(name), MotoServer("10.77.0.1")
        server.start_gateway()
        aws = aws_environment(server.endpoint, "any", "any")
        for key, value in aws.items():
            patch.setenv(key, value)
        patch.delenv("AWS_PROFILE", raising=False)
        make_bucket("runs")
        first = hosts.address(1)
        head = [RAY, "start", "--head", "--block", "--port=6379", "--include-dashboard=false", "--num-cpus=1"]
        hosts.start(1, [*head, f"--node-ip-address={first}"], folder / "ray-1.log", {**QUIET, **aws})
        deadline = time.monotonic() + 180
        while "Ray runtime started" not in (folder / "ray-1.log").read_text(errors="replace"):
            assert time.monotonic() < deadline  # a node waits for its head's answer for half a minute and no longer
            time.sleep(0.2)
        node = [RAY, "start", "--block", f"--address={first}:6379", "--num-cpus=1"]
        hosts.start(2, [*node, f"--node-ip-address={hosts.address(2)}"], folder / "ray-2.log", {**QUIET, **aws})
        (folder / "home").mkdir()
        settings = {"ray_address": f"{first}:6379", "work_root": WORK, "objects": "s3://runs/jobs"}
        (folder / "home" / "config.yaml").write_text(yaml.safe_dump(settings))
        cluster = Cluster(hosts, folder, aws)
        cluster.rexctl("up")
        while len([n for n in Store(cluster.home.database_url).nodes() if n["alive"]]) < 2:
            assert time.monotonic() < deadline, (folder / "ray-2.log").read_text()
            time.sleep(0.2)
        yield cluster
        cluster.rexctl("down", "--now")
        server.stop_gateway()


@pytest.fixture(scope="module")
def followed(cluster: Cluster) -> tuple[str, list[dict[str, Any]]]:
    """A job whose rank 1 fails once, and all that `rexctl logs -f` printed of it from its submission on."""
    met = cluster.folder / "met"  # these hosts share what is not their own
    program = ("--steps", STEPS, "--step_s", 0.04, "--say_steps", "--fail_rank", 1, "--fail_at", FAIL_AT)
    spec = counting_spec(
        cluster.folder / "job.yaml",
        *(*program, "--crawl_at", 50, "--until", met),
        gang={"nodes": 2, "workers_per_node": 1},
        credentials={"from_env": sorted(cluster.aws)},
    )
    job = str(json.loads(cluster.rexctl("submit", str(spec), "--json").stdout)["job_id"])
    said, told = cluster.folder / "said", cluster.folder / "told"
    with said.open("wb") as out, told.open("wb") as err:
        command = cluster.hosts.command(1, [REXCTL, "logs", "-f", job, "--json", "-v"], cluster.env)
        follow = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    deadline = time.monotonic() + 300
    while not all(f'"source": "{source}"' in said.read_text() for source in ("node", "folder")):
        assert follow.poll() is None and time.monotonic() < deadline, told.read_text()
        time.sleep(0.2)
    met.touch()
    assert follow.wait(600) == 0, told.read_text()
    status = job_view(Store(cluster.home.database_url), job, mlflow_uri="")
    assert [attempt["cause"] for attempt in status["attempts"]] == ["crash", "done"], status
    return job, [json.loads(line) for line in said.read_text().splitlines()]


def steps(lines: list[dict[str, Any]], attempt: int, rank: int) -> list[int]:
    mine = [line["line"] for line in lines if (line["attempt"], line["rank"]) == (attempt, rank)]
    return [int(text.removeprefix("step ")) for text in mine if text.startswith("step ")]


def shipped(cluster: Cluster, job: str) -> dict[str, str]:
    """The keys of the indexes in the store, by attempt and node; waits until all four are there."""
    import boto3

    client = boto3.client("s3")
    deadline = time.monotonic() + 120
    while True:
        found = client.list_objects_v2(Bucket="runs", Prefix=f"jobs/{job}/logs/").get("Contents", [])
        keys = {key.split("/logs/")[1]: key for one in found if (key := one["Key"]).endswith("/index.json")}
        if len(keys) == 4:
            return keys
        assert time.monotonic() < deadline, keys
        time.sleep(0.2)


def test_following_sees_the_other_hosts_rank_live_each_line_once_each_attempt_whole_before_the_next(
    followed: tuple[str, list[dict[str, Any]]],
) -> None:
    _, lines = followed
    assert [line["attempt"] for line in lines] == sorted(line["attempt"] for line in lines)
    assert steps(lines, 1, 1) == list(range(1, FAIL_AT + 1))
    assert [line["line"] for line in lines if (line["attempt"], line["rank"]) == (1, 1)][-1] == "about to fail"
    for rank in (0, 1):
        seen = steps(lines, 2, rank)
        assert seen == list(range(seen[0], STEPS + 1))
    sources = {(line["host"], line["source"]) for line in lines}
    here = {line["host"] for line in lines if line["source"] == "folder"}
    assert len(here) == 1 and {host for host, source in sources if source == "node"} == {"rexhost1", "rexhost2"} - here
    live = [number for number, line in enumerate(lines) if line["attempt"] == 1 and line["source"] == "node"]
    others = [number for number, line in enumerate(lines) if line["attempt"] == 1 and line["source"] == "folder"]
    assert live[0] < others[-1]  # not one after the other


def test_ended_attempt_is_read_from_the_store_and_without_it_from_the_node(
    cluster: Cluster, followed: tuple[str, list[dict[str, Any]]]
) -> None:
    import boto3

    job, lines = followed
    other = next(line["rank"] for line in lines if line["source"] == "node" and line["attempt"] == 1)
    arguments = (job, "--attempt", "1", "--rank", str(other))
    before = shipped(cluster, job)
    from_store = cluster.lines(*arguments)
    assert {line["source"] for line in from_store} == {"store"}
    boto3.client("s3").delete_object(Bucket="runs", Key=before[f"attempt-1/node-{other}/index.json"])
    from_node = cluster.lines(*arguments)
    assert {line["source"] for line in from_node} == {"node"}
    assert [one["line"] for one in from_store] == [one["line"] for one in from_node]
    assert steps(from_store, 1, other) == steps(lines, 1, other)
    tail = cluster.lines(*arguments, "--tail", "3")
    assert [one["line"] for one in tail] == [one["line"] for one in from_node[-3:]]


def test_logs_of_a_host_that_is_gone_come_from_the_store_and_what_is_lost_is_told(
    cluster: Cluster, followed: tuple[str, list[dict[str, Any]]]
) -> None:
    job, lines = followed
    cluster.hosts.kill(2)
    host_of = {(line["attempt"], line["host"]): line["rank"] for line in lines}
    rank = host_of[2, "rexhost2"]
    shown = cluster.rexctl("logs", job, "--attempt", "2", "--rank", str(rank), "-v")
    assert "final" in shown.stdout or f"step {STEPS}" in shown.stdout
    assert "the object store, s3://runs/jobs/" in shown.stderr
    lost = cluster.rexctl("logs", job, "--attempt", "1", code=3)
    (told,) = [line for line in lost.stderr.splitlines() if line.startswith("attempt 1")]
    assert f"the log of rank {host_of[1, 'rexhost2']} cannot be read" in told and "rexhost2" in told, told
    assert "not shipped" in told
    assert f"[{host_of[1, 'rexhost1']}] step 1" in lost.stdout
