"""A node's supervisor and agent where something goes wrong with them or their shims: nothing is missed or mistold."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.launch import LaunchPlan
from cluster.lease import boottime
from cluster.node import agent as agent_module
from cluster.node import ending, shims
from cluster.node.agent import Agent
from cluster.node.certify import certify
from cluster.node.ending import ENV_SUPERVISES
from cluster.node.link import Link
from cluster.node.peers import Peers
from cluster.node.processes import is_alive
from cluster.node.released import write_start
from cluster.node.shims import Shims
from cluster.node.supervision import Supervisor
from cluster.outcome.stops import LEASE_OVER
from jobs.contract import ENV_TOKEN, Exit, Outcome

ROOT = Path(__file__).parents[2]
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
START = {
    "node_rank": 0,
    "master_addr": "127.0.0.1",
    "master_port": 1,
    "interface": "lo",
    "devices": [],
    "peers_port": 0,
}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaunchPlan:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = LaunchPlan(
        job="j", attempt=1, token=uuid.uuid4().hex, nodes=1, workers_per_node=2, cpus_per_worker=1, npus_per_node=0,
        program=("module", "m"), work_root=str(tmp_path), isolate="never",
    )  # fmt: skip
    (Path(made.directory(0)) / "reports").mkdir(parents=True)
    return made


@pytest.fixture
def supervisor(plan: LaunchPlan) -> Iterator[Supervisor]:
    agent, ours = socket.socketpair()
    made = Supervisor(
        plan, 0, ("127.0.0.1", 1), link=Link(ours), peers=Peers(plan.token, 0, 1),
        lease_until=boottime() + 600, interface=None,
    )  # fmt: skip
    yield made
    for sock in (agent, ours, made.inbox.sock):
        sock.close()
    made.peers.close(good=True)
    made.cpus.release()


@pytest.fixture
def sleeper() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started = []

    def start(**env: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(SLEEP, env={**os.environ, **env}))
        while not Path(f"/proc/{started[-1].pid}/environ").read_bytes():
            time.sleep(0.01)  # the kernel has not set it up yet
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(timeout=60)


def leave(plan: LaunchPlan, rank: int, code: int) -> None:
    outcome = Outcome(rank=rank, pid=1, code=code, signal=None, at=1.0)
    (Path(plan.directory(0)) / "reports" / f"outcome_{rank}.json").write_text(outcome.to_json())


# -- shims


@pytest.mark.parametrize("rank", [0, -1])
def test_killed_shim_is_a_fault_of_its_rank(
    supervisor: Supervisor, sleeper: Callable[..., subprocess.Popen[bytes]], rank: int
) -> None:
    shim, other = sleeper(), sleeper()
    supervisor.shims.hello(rank, shim.pid)
    supervisor.shims.hello(1, other.pid)
    supervisor._look_for_the_unheard()
    assert supervisor.fault is None
    shim.kill()
    shim.wait(timeout=60)
    supervisor._look_for_the_unheard()
    assert supervisor.fault == {"rank": rank, "code": None, "signal": 9}
    assert supervisor.outcomes[rank]["reason"] == "its shim was killed" and list(supervisor.outcomes) == [rank]


def test_shims_that_end_all_at_once_give_msruns_own_end_a_moment_to_be_seen(
    supervisor: Supervisor, sleeper: Callable[..., subprocess.Popen[bytes]]
) -> None:
    for rank, shim in enumerate((sleeper(), sleeper())):
        supervisor.shims.hello(rank, shim.pid)
        shim.kill()
        shim.wait(timeout=60)
    supervisor._look_for_the_unheard()
    assert supervisor.fault is None
    supervisor._look_for_the_unheard()
    assert supervisor.fault is not None and sorted(supervisor.outcomes) == [0, 1]


def test_disk_that_gives_no_answer_makes_no_rank_a_killed_one(
    supervisor: Supervisor, sleeper: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(_: Path) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("cluster.node.supervision.outcomes_on_disk", stale)
    shim = sleeper()
    supervisor.shims.hello(0, shim.pid)
    supervisor.shims.hello(1, os.getpid())
    shim.kill()
    shim.wait(timeout=60)
    supervisor._look_for_the_unheard()
    assert supervisor.fault is None and supervisor.outcomes == {}


@pytest.mark.parametrize("said_hello", [True, False])
def test_outcome_whose_datagram_was_dropped_is_read_from_disk(
    supervisor: Supervisor, plan: LaunchPlan, sleeper: Callable[..., subprocess.Popen[bytes]], said_hello: bool
) -> None:
    if said_hello:
        shim = sleeper()
        supervisor.shims.hello(1, shim.pid)
        shim.kill()
        shim.wait(timeout=60)
    leave(plan, 0, 0)
    leave(plan, 1, 64)
    supervisor._look_for_the_unheard()
    assert supervisor.fault == {"rank": 1, "code": 64, "signal": None}
    assert supervisor.good_since is not None


def test_process_that_was_given_a_dead_shims_id_gets_no_signal(
    sleeper: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, stranger, mine = Shims(), sleeper(), sleeper()
    with monkeypatch.context() as earlier:
        earlier.setattr(shims, "started_at", lambda pid: 1)
        known.hello(0, stranger.pid)
    known.hello(1, mine.pid)
    for rank in (0, 1, 7):
        known.terminate(rank)
    stranger.kill()  # behind the SIGTERM, had there been one
    assert (stranger.wait(timeout=60), mine.wait(timeout=60)) == (-signal.SIGKILL, -signal.SIGTERM)
    assert known.alive() == {} and known.gone() == {0: stranger.pid, 1: mine.pid}


# -- a supervisor that fails


def supervise(plan: LaunchPlan) -> dict[str, Any]:
    """What a supervisor says first on that folder."""
    agent, theirs = socket.socketpair()
    with agent, theirs:
        subprocess.run(
            [sys.executable, "-m", "cluster.node.supervisor", plan.directory(0), str(theirs.fileno())],
            pass_fds=[theirs.fileno()], cwd=ROOT, check=True, timeout=120,
            env={**os.environ, ENV_SUPERVISES: plan.token, "TMPDIR": plan.work_root},
        )  # fmt: skip
        theirs.close()
        agent.settimeout(120)
        with agent.makefile() as lines:
            said: dict[str, Any] = json.loads(lines.readline())
        return said


def test_supervisor_that_cannot_start_says_why_and_ends_what_is_there(
    plan: LaunchPlan, sleeper: Callable[..., subprocess.Popen[bytes]]
) -> None:
    worker = sleeper(**{ENV_TOKEN: plan.token})
    said = supervise(plan)  # there is no start file
    assert said["kind"] == "failed" and said["message"].startswith(f"{socket.gethostname()}: FileNotFoundError")
    assert worker.wait(timeout=60) == -signal.SIGKILL
    assert "Traceback" in (Path(plan.directory(0)) / "supervisor.log").read_text()


@pytest.mark.parametrize(("lease_s", "certified"), [(600.0, True), (-1.0, False)])
def test_supervisor_starts_nothing_on_a_node_whose_part_is_over(
    plan: LaunchPlan, lease_s: float, certified: bool
) -> None:
    """An agent that was stopped goes on after its node's certificate was given, or its lease has run out."""
    if certified:
        assert certify(plan.to_json(), 0)["survivors"] == []
    write_start(Path(plan.directory(0)), {**START, "plan": plan.to_json(), "lease_until": boottime() + lease_s})
    said = supervise(plan)
    assert said["kind"] == "failed" and "was over before msrun was started" in said["message"]
    assert not (Path(plan.directory(0)) / "msrun.log").exists()


# -- the agent


@pytest.fixture
def agent(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """One that no thread runs."""
    monkeypatch.setattr(agent_module, "rank_as", lambda pid: [])
    monkeypatch.setattr(agent_module, "why_not_ready", lambda plan, rank: None)
    with pytest.MonkeyPatch.context() as meanwhile:
        meanwhile.setattr(threading.Thread, "start", lambda self: None)
        return Agent(plan.to_json(), 0)


def test_failing_supervisors_own_words_are_the_end(agent: Agent) -> None:
    link, theirs = socket.socketpair()
    theirs.sendall(json.dumps({"kind": "failed", "message": "n1: OSError: no room"}).encode() + b"\n")
    with link, theirs:
        agent._listen(link)
    assert agent._ended is not None and agent._ended["message"] == "the supervisor failed on n1: OSError: no room"
    assert agent._ended["fault"] == {"rank": None, "code": int(Exit.INFRASTRUCTURE)}


def test_supervisor_that_is_gone_after_the_lease_was_ended_by_the_lease(agent: Agent) -> None:
    agent._lease_until = boottime() - 1
    link, theirs = socket.socketpair()
    theirs.close()
    with link:
        agent._listen(link)
    assert agent._ended is not None and agent._ended["stop_why"] == LEASE_OVER


def test_what_the_disk_does_not_tell_keeps_no_attempt_from_ending(
    agent: Agent, plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    leave(plan, 0, 64)
    monkeypatch.setattr(ending, "released", stale)
    agent._end({"fault": {"rank": None, "code": None}, "message": "the supervisor was killed"})
    assert agent._ended is not None and agent._ended["survivors"] == []
    assert agent._ended["message"].startswith("the supervisor was killed; ") and "Stale" in agent._ended["message"]
    assert [outcome["code"] for outcome in agent._ended["outcomes"]] == [64]


def test_agent_that_never_started_a_supervisor_sweeps_before_it_says_that_nobody_is_left(
    agent: Agent, plan: LaunchPlan, sleeper: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = sleeper(**{ENV_TOKEN: plan.token})
    for step in ("_prepare", "_find_master"):
        monkeypatch.setattr(agent, step, lambda: None)
    agent.stop("cancelled", 0.0)
    agent._work()
    assert agent._ended is not None and (agent._ended["stop_why"], agent._ended["survivors"]) == ("cancelled", [])
    assert left.wait(timeout=60) == -signal.SIGKILL


def test_what_preparing_has_started_ends_with_it(
    agent: Agent, plan: LaunchPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "grandchild"
    code = (
        "import pathlib, subprocess, sys; child = subprocess.Popen(sys.argv[2:]);"
        "path = pathlib.Path(sys.argv[1]); new = path.with_suffix('.tmp');"
        "new.write_text(str(child.pid)); new.rename(path); child.wait()"
    )
    agent._plan = replace(plan, prepare=("-c", code, str(told), *SLEEP))
    monkeypatch.setattr(agent, "_may_go_on", lambda: not told.exists())
    agent._prepare()
    assert not is_alive(int(told.read_text()))


# -- the certificate of a node whose agent died


def test_certificate_without_a_record_tells_what_the_ranks_left(plan: LaunchPlan) -> None:
    leave(plan, 0, 0)
    leave(plan, 1, 64)
    record = certify(plan.to_json(), 0)
    assert {outcome["rank"]: outcome["code"] for outcome in record["outcomes"]} == {0: 0, 1: 64}
    assert record["message"] == "the agent died" and record["unattended"]


def test_certificate_is_given_where_no_mark_can_be_left(plan: LaunchPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = replace(plan, work_root=str(tmp_path / "file"))
    assert certify(nowhere.to_json(), 0)["survivors"] == []
