"""A gang over two hosts that share nothing but an S3 and an MLflow server: real Ray nodes, real msrun on each."""

from __future__ import annotations

import time

from tests.support.ray_hosts import Cluster, all_are_heard
from tests.support.rex import REXCTL, counting_spec


def test_gang_over_two_hosts_runs_to_its_end(cluster: Cluster) -> None:
    job = cluster.submit("--steps", 30)
    ended = cluster.finish(job)
    assert ended["state"] == "succeeded", ended
    assert len(set(ended["attempts"][0]["hosts"])) == 2
    assert cluster.left_over() == []


def test_first_fault_on_one_host_ends_the_gang_on_both_and_it_resumes(cluster: Cluster) -> None:
    job = cluster.submit("--steps", 120, "--crawl_at", 40, "--commit_every", 15)
    status = cluster.wait(
        job, lambda s: s["progress"]["step"] > 20 and s["checkpoint"] is not None and all_are_heard(s, 2)
    )
    host, pid = int(status["attempts"][0]["hosts"][1].removeprefix("rexhost")), str(status["ranks"][1]["pid"])
    raylet = cluster.hosts.run(host, ["pgrep", "-o", "-f", "raylet/raylet"]).stdout.strip()
    ranked = [f"/proc/{process}/oom_score_adj" for process in (raylet, pid)]
    rays, ours = cluster.hosts.run(host, ["cat", *ranked]).stdout.split()
    assert rays == ours, "Ray has its workers killed first for memory; training is none of them"
    cluster.hosts.run(host, ["kill", "-9", pid])
    ended = cluster.finish(job)
    first, second = ended["attempts"]
    assert (ended["state"], first["cause"], second["cause"]) == ("succeeded", "crash", "done"), ended
    assert "killed by signal 9" in first["detail"]
    assert second["from_step"] >= 15
    assert cluster.left_over() == []


def test_death_of_an_agent_ends_the_gang_on_all_hosts_while_nobody_decides_anything(cluster: Cluster) -> None:
    """Supervisors tell each other. The canary's ranks need nobody: without that word the others would count on."""
    job = cluster.submit_canary("--steps", 6000, "--step_s", 0.1, "--commit_every", 10, nodes=3)
    status = cluster.wait(job, lambda s: s["progress"]["step"] > 5 and all_are_heard(s, 3))
    node, deadline = status["nodes"][1], time.monotonic() + 60
    while len(control_plane := cluster.hosts.run(1, ["pgrep", "-f", "orchestrator.daemon"]).stdout.split()) != 2:
        assert time.monotonic() < deadline, control_plane
    cluster.hosts.run(1, ["kill", "-STOP", *control_plane])
    try:
        cluster.hosts.run(int(node["host"].removeprefix("rexhost")), ["kill", "-9", str(node["agent"])])
        deadline = time.monotonic() + 60
        while left := cluster.left_over():
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    finally:
        cluster.hosts.run(1, ["kill", "-CONT", *control_plane])
    first = cluster.wait(job, lambda s: s["attempts"][0]["cause"] is not None)["attempts"][0]
    assert (first["cause"], first["detail"].split(" died")[0]) == ("infrastructure", f"the agent on {node['host']}")
    whys = [cluster.record(job, 1, rank, "ended.json")["stop_why"] for rank in range(3)]
    assert whys == ["peer_fault", "agent_gone", "peer_fault"]
    cluster.rexctl("cancel", job)
    cluster.finish(job)


def test_more_nodes_than_the_cluster_has_is_refused(cluster: Cluster) -> None:
    spec = counting_spec(cluster.folder / "wide.yaml", gang={"nodes": 4, "workers_per_node": 1})
    done = cluster.hosts.run(1, [REXCTL, "submit", str(spec)], env=cluster.rex_env)
    assert done.returncode == 2 and "gang.nodes is 4, the cluster has 3 nodes" in done.stderr
