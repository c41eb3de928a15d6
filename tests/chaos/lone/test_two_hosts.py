"""A gang over two hosts that share nothing but an S3 and an MLflow server: real Ray nodes, real msrun on each."""

from __future__ import annotations

from tests.support.ray_hosts import Cluster
from tests.support.rex import REXCTL, counting_spec


def test_gang_over_two_hosts_runs_to_its_end(cluster: Cluster) -> None:
    job = cluster.submit("--steps", 30)
    ended = cluster.finish(job)
    assert ended["state"] == "succeeded", ended
    assert len(set(ended["attempts"][0]["hosts"])) == 2
    assert cluster.left_over() == []


def test_first_fault_on_one_host_ends_the_gang_on_both_and_it_resumes(cluster: Cluster) -> None:
    job = cluster.submit("--steps", 120, "--commit_every", 15)
    status = cluster.wait(job, lambda s: s["progress"]["step"] > 20 and s["checkpoint"] is not None)
    host = int(status["attempts"][0]["hosts"][1].removeprefix("rexhost"))
    pids = cluster.hosts.run(host, ["pgrep", "-f", "^.*python.*counting_program.py --steps"]).stdout.split()
    assert pids
    cluster.hosts.run(host, ["kill", "-9", pids[-1]])
    ended = cluster.finish(job)
    first, second = ended["attempts"]
    assert (ended["state"], first["cause"], second["cause"]) == ("succeeded", "crash", "done"), ended
    assert "killed by signal 9" in first["detail"]
    assert second["from_step"] >= 15
    assert cluster.left_over() == []


def test_more_nodes_than_the_cluster_has_is_refused(cluster: Cluster) -> None:
    spec = counting_spec(cluster.folder / "wide.yaml", gang={"nodes": 4, "workers_per_node": 1})
    done = cluster.hosts.run(1, [REXCTL, "submit", str(spec)], env=cluster.rex_env)
    assert done.returncode == 2 and "gang.nodes is 4, the cluster has 3 nodes" in done.stderr
