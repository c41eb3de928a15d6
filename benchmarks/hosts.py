"""How soon a gang over three hosts ends after its first death, and how soon a job goes on after a host is lost.

Beside the limits that we set ourselves. Three hosts as network namespaces, a Ray node on each, the canary in the place
of training: what is measured is ours alone. A death is that of a rank, of msrun, or of what watches over them. From the
loss to the first new step, less what a bare msrun of the same program takes by hand on two of these hosts.
"""

from __future__ import annotations

import ast
import statistics
import sys
import time
from typing import Any

from benchmarks.bare import over_two_hosts
from benchmarks.pairs import Result
from cluster.chaos import canary
from cluster.lease import LEASE_S
from orchestrator.store import Store
from tests.support import hosts as hosts_support
from tests.support.radosgw import missing_for_radosgw
from tests.support.ray_hosts import Cluster, lone_hosts

SHORT_LEASE_S = 12.0  # for silent losses, of which each waits for one
DEATH_LIMIT_S, CONFIRMED_LIMIT_S, SILENT_LIMIT_S = 5.0, 15.0, SHORT_LEASE_S + 15.0
_IDLE_S = 8.0  # what a host that comes back leaves to be done is done by then
_DEATHS, _LOSSES = 20, 5
_VICTIMS = ("msrun", "supervisor", "agent", "ray_node")
CANARY_BY_HAND = (canary.__file__, "--steps", "3", "--step_s", "0.1")
_CANARY = ("--steps", 3000, "--step_s", 0.1, "--commit_every", 10)


def run() -> list[Result]:
    lacking = hosts_support.missing() or missing_for_radosgw()
    if lacking:
        print(f"not run: several hosts on one machine: {lacking}", file=sys.stderr)
        return []
    with lone_hosts(3, host_gone_command=["test", "-e", "/tmp/gone-{host}"]) as cluster:  # the lease that we ship
        deaths = [_told("worker", first_death(cluster, "worker")) for _ in range(_DEATHS)]
        victims = [victim for victim in _VICTIMS for _ in range(_DEATHS // len(_VICTIMS))]
        others = [_told(victim, first_death(cluster, victim)) for victim in victims]
        confirmed = [_told("loss that the provider confirms", loss(cluster, "provider")) for _ in range(_LOSSES)]
        booted = [_told("loss that a new boot confirms", loss(cluster, "boot")) for _ in range(_LOSSES)]
    with lone_hosts(3, lease_s=SHORT_LEASE_S) as cluster:
        silent = [_told("silent loss", loss(cluster, "lease")) for _ in range(_LOSSES)]
    return [
        _beside(
            "death of a rank to the last worker's end, 3 hosts", DEATH_LIMIT_S, deaths, f"p95 {_p95(deaths):.2f} s"
        ),
        _beside(
            "death of msrun, a supervisor, an agent or a Ray node to the last worker's end, 3 hosts",
            DEATH_LIMIT_S,
            others,
            f"p95 {_p95(others):.2f} s",
        ),
        _beside(
            "confirmed loss of a host to the first new step, less a bare start",
            CONFIRMED_LIMIT_S,
            confirmed,
            f"the provider says so; a lease of {LEASE_S:g} s",
        ),
        _beside(
            "return of a host that has booted anew to the first new step, less a bare start",
            CONFIRMED_LIMIT_S,
            booted,
            f"from its Ray node's start on; a lease of {LEASE_S:g} s",
        ),
        _beside(
            "silent loss of a host to the first new step, less a bare start",
            SILENT_LIMIT_S,
            silent,
            f"a lease of {SHORT_LEASE_S:g} s",
        ),
    ]


def _told(what: str, seconds: float) -> float:
    print(f"{what}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return seconds


def _p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


def _beside(name: str, limit_s: float, seconds: list[float], note: str) -> Result:
    """The limit is on every one of them, so on their p95, too."""
    pairs = tuple((s, limit_s) for s in seconds)
    return Result(name=name, peer=f"limit of {limit_s:g} s", pairs=pairs, note=note, kept=max(seconds) < limit_s)


def _training(cluster: Cluster, nodes: int) -> tuple[str, dict[str, Any]]:
    job = cluster.submit_canary(*_CANARY, nodes=nodes)

    def trains(status: dict[str, Any]) -> bool:
        return status["progress"]["step"] > 15 and status["checkpoint"] is not None and len(status["ranks"]) == nodes

    return job, cluster.wait(job, trains)


def _cancel(cluster: Cluster, job: str) -> None:
    cluster.rexctl("cancel", job)
    cluster.finish(job)


def first_death(cluster: Cluster, victim: str) -> float:
    """Seconds from a SIGKILL on one host to the end of the last process of the gang on any host."""
    job, status = _training(cluster, nodes=3)
    node = next(seen for seen in reversed(status["nodes"]) if seen["host"] != "rexhost1")  # Ray's head is there
    token = Store(cluster.home.database_url).attempt(job, 1).token
    host = int(node["host"].removeprefix("rexhost"))
    words = f"'kill', {victim!r}, {token!r}, {node['agent']}, 0.0"
    code = f"from cluster.chaos.faults import strike; print(strike({words}))"
    struck = cluster.hosts.run(host, [sys.executable, "-c", code]).stdout
    killed_at = ast.literal_eval(struck)["at"]
    cluster.wait(job, lambda s: s["attempts"][0]["cause"] is not None)
    ended = max(cluster.record(job, 1, rank, "ended.json")["at"] for rank in range(3))
    _cancel(cluster, job)
    cluster.mend()
    return float(ended - killed_at)


def loss(cluster: Cluster, proof: str) -> float:
    """Seconds from the loss of one of two hosts to the end of the first step that is new, less what a bare msrun takes
    to its first step over two hosts.

    `proof`: what says that the host is gone: the provider; its boot (counted from when it is back); its lease alone.
    """
    bare_s = over_two_hosts(cluster, f"bare-{time.time_ns()}", CANARY_BY_HAND)
    job, status = _training(cluster, nodes=2)
    host = next(name for name in status["attempts"][0]["hosts"] if name != "rexhost1")
    number = int(host.removeprefix("rexhost"))
    gone = cluster.folder / "tmp" / f"gone-{host}"  # /tmp of the first host, where the control plane asks
    lost_at = time.time()
    cluster.hosts.cut(number)  # nobody sees a reset
    cluster.hosts.kill(number)
    if proof == "provider":
        gone.touch()
    elif proof == "boot":
        cluster.hosts.heal(number)
        cluster.hosts.boot(number)
        cluster.join(number)
        lost_at = time.time()

    def is_beyond(status: dict[str, Any]) -> bool:
        attempts = status["attempts"]
        return len(attempts) == 2 and int(attempts[1]["to_step"]) > int(attempts[0]["to_step"])

    cluster.wait(job, is_beyond)
    new_step_at = time.time()
    _cancel(cluster, job)
    gone.unlink(missing_ok=True)
    if proof != "boot":
        cluster.renew(number)
    cluster.mend()
    time.sleep(_IDLE_S)
    return new_step_at - lost_at - bare_s
