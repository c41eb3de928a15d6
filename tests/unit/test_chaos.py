"""Chaos: the plan is a function of its seed, and the oracle sees what it is there for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.chaos import faults as node_faults
from cluster.chaos.canary import advance, result, state_after
from cluster.gang import Node
from cluster.node.processes import is_alive
from cluster.preflight.facts import package_files
from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs import contract
from jobs.errors import ClusterUnreachable, SpecError
from jobs.spec import JobSpec
from orchestrator.chaos import report
from orchestrator.chaos.campaign import Campaign, Trial, canary_spec
from orchestrator.chaos.oracle import MISSED, UNASKED, Evidence, is_lost, overlaps, verdict
from orchestrator.chaos.plan import KINDS, Canary, Fault, Plan, faults, read_plan
from orchestrator.chaos.report import Findings, page, read, write
from orchestrator.chaos.strikes import Strikes
from orchestrator.settings import Home
from orchestrator.stack import Stack


def passing(kind: str = "kill_worker") -> Evidence:
    causes = ["done"] if KINDS[kind].expects == "untouched" else [KINDS[kind].causes[0].value, "done"]
    return Evidence(
        kind=kind,
        struck={"what": "worker", "at": 1.0, "attempt": 1, "trained": True},
        state="succeeded",
        detail="",
        attempts=tuple({"cause": cause, "hosts": ["a"]} for cause in causes),
        looks=({"host": "a", "orphans": [], "spans": [span(1, 0.0, 5.0), span(2, 5.5, 9.0)]},),
        chain=(),
        digest="x",
        expected_digest="x",
    )


def span(attempt: int, began: float, ended: float | None, host: str = "a") -> dict[str, Any]:
    return {"attempt": attempt, "node_rank": 0, "host": host, "began": began, "ended": ended}


@pytest.mark.parametrize("kind", ["kill_worker", "kill_control_plane"])
def test_job_that_went_on_as_it_must_passes(kind: str) -> None:
    assert verdict(passing(kind)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": "failed", "detail": "gave up"}, "ended failed: gave up"),
        ({"attempts": ({"cause": "done", "hosts": ["a"]},)}, "went unseen"),
        ({"kind": "kill_control_plane"}, "a healthy job was lost"),
        ({"looks": ({"host": "b", "orphans": [7], "spans": []},)}, "orphans on b: [7]"),
        (
            {"looks": ({"host": "a", "orphans": [], "spans": [span(1, 0, 6), span(2, 5, 9)]},)},
            "attempt 1 on a ended 1.0",
        ),
        ({"attempts": ({"cause": "hang", "hosts": ["a"]}, {"cause": "done", "hosts": ["a"]})}, "as hang, not as crash"),
        ({"attempts": ({"cause": "crash", "hosts": ["a", "b"]}, {"cause": "done", "hosts": ["a"]})}, "b could not be"),
        ({"looks": ()}, "a could not be asked"),
        ({"chain": ("a parent is missing",)}, "a parent is missing"),
        ({"digest": "y"}, "an undisturbed run ends with x"),
        ({"digest": None}, "an undisturbed run ends with x"),
    ],
)
def test_oracle_sees_what_went_wrong(change: dict[str, Any], says: str) -> None:
    problems = verdict(replace(passing(), **change))
    assert any(says in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("kind", "state", "causes", "lost"),
    [
        ("kill_control_plane", "succeeded", ["done"], False),
        ("kill_control_plane", "succeeded", ["node_lost", "done"], True),
        ("stop_store", "failed", ["infrastructure"], True),
        ("kill_worker", "failed", ["crash"], False),
    ],
)
def test_healthy_job_is_lost_that_a_fault_beside_it_ends(kind: str, state: str, causes: list[str], lost: bool) -> None:
    attempts = tuple({"cause": cause, "hosts": ["a"]} for cause in causes)
    assert is_lost(kind, verdict(replace(passing(kind), state=state, attempts=attempts))) is lost


def test_fault_that_hit_nothing_proves_nothing() -> None:
    (said,) = verdict(replace(passing(), struck=None, attempts=({"cause": "done", "hosts": ["a"]},)))
    assert "hit nothing" in said and not is_lost("stop_mlflow", [said])


def test_overlap_across_hosts_allows_for_their_clocks() -> None:
    assert overlaps([span(1, 0, 6.0), span(2, 5.5, 9.0, host="b")]) == []
    assert len(overlaps([span(1, 0, 7.0), span(2, 5.5, 9.0, host="b")])) == 1
    assert overlaps([span(1, 0, None), span(2, 5.5, 9.0)]) == [], "killed: others testify for it"


@pytest.mark.parametrize(("kind", "rest_s"), [("kill_ray_node", 10.0), ("power_off", 12.0), ("stop_mlflow", 5.0)])
def test_canary_is_still_training_when_its_fault_is_seen(kind: str, rest_s: float, tmp_path: Path) -> None:
    plan = Plan(canary=Canary(steps=30, step_s=0.1))
    stack = Stack(Home(tmp_path))
    campaign = Campaign(plan, stack, cast(Any, None), cast(Any, None))
    for at in (0.15, 0.3, 0.65):
        arguments = list(campaign.spec(Fault(seed=42, number=1, kind=kind, at=at, pick=0.0)).program.args)
        steps = int(arguments[arguments.index("--steps") + 1])
        assert steps * (1 - at) * 0.1 >= rest_s


def test_same_seed_gives_the_same_faults_and_each_kind_comes_before_any_comes_twice() -> None:
    plan = Plan(seed=5, count=30)
    assert faults(plan) == faults(plan) != faults(Plan(seed=6, count=30))
    possible = [name for name, lacks in plan.possible().items() if not lacks]
    assert {fault.kind for fault in faults(plan)[: len(possible)]} == set(possible)
    assert all(0.1 < fault.at < 0.8 for fault in faults(plan))


def test_some_faults_come_while_the_gang_starts_but_none_before_its_kind_came_to_one_that_trains() -> None:
    commands: dict[str, tuple[str, ...]] = {need: ("true",) for kind in KINDS.values() for need in kind.needs}
    chosen = faults(Plan(seed=1, count=200, commands=commands, allow_full_disk=True))
    early = [fault for fault in chosen if fault.early_s is not None]
    assert 10 < len(early) < 40 and all(KINDS[fault.kind].early for fault in early)
    assert all(fault.early_s is None for fault in chosen[: len(KINDS)])


@pytest.mark.parametrize("kind", ["stop_store", "cut_network"])
def test_gang_that_was_hit_before_its_first_step_may_start_again_once_but_not_crash(kind: str) -> None:
    def ended(*causes: str, trained: bool = False) -> Evidence:
        attempts = tuple({"cause": cause, "hosts": ["a"]} for cause in causes)
        hit = {"what": kind, "at": 1.0, "attempt": 1, "trained": trained}
        return replace(passing(kind), struck=hit, attempts=attempts)

    assert (
        verdict(ended("done")) == verdict(ended("infrastructure", "done")) == verdict(ended("node_lost", "done")) == []
    )
    (crashed,), (again,) = verdict(ended("crash", "done")), verdict(ended("node_lost", "infrastructure", "done"))
    assert "had not started and ended as crash" in crashed and "healthy job was lost" in again
    assert verdict(ended("infrastructure", "done", trained=True)), "one that trained is held to what its kind expects"


@pytest.mark.parametrize(
    ("granted_s_ago", "nodes", "now"), [(900.0, [{}], True), (1.0, [{}], False), (900.0, [], False)]
)
def test_early_fault_comes_so_long_after_the_grant(granted_s_ago: float, nodes: list[Any], now: bool) -> None:
    class OneAttempt:
        @staticmethod
        def attempts(job: str) -> list[Any]:
            return [SimpleNamespace(nodes=nodes, granted_at=time.time() - granted_s_ago)]

    campaign = Campaign(Plan(), cast(Any, None), cast(Any, OneAttempt()), cast(Any, None))
    fault = Fault(seed=1, number=1, kind="stop_store", at=0.5, pick=0.0, early_s=600.0)
    assert campaign._is_time(fault, "j", {}) is now


def test_kinds_that_need_a_command_are_possible_only_with_it() -> None:
    assert "cut is missing" in Plan().possible()["cut_network"]
    commands: dict[str, tuple[str, ...]] = {"cut": ("true",), "heal": ("true",)}
    assert Plan(commands=commands).possible()["cut_network"] == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kinds: [kill_everything]", "kill_everything is none"),
        ("kinds: [cut_network]", "cut is missing"),
        ("sed: 3", "keys: seed"),
        ("canary: {nodes: none}", "canary.nodes"),
        ("{", "chaos plan"),
        ("[1]", "chaos plan"),
    ],
)
def test_bad_plan_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match="chaos plan") as seen:
        read_plan(path)
    assert says in str(seen.value) and "\n" not in str(seen.value)


class TwiceOnTheList:
    """A host that was switched off and on: Ray still lists its earlier node, which never answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def nodes(self) -> list[Node]:
        rows = [("gone", "h1", True), ("new", "h1", True), ("other", "h2", True), ("dead", "h3", False)]
        return [Node(id=i, host=host, address="", cpus=1.0, npus=0.0, alive=alive) for i, host, alive in rows]

    def on_node(self, node_id: str, *_: object, timeout_s: float) -> dict[str, Any]:
        self.asked.append(node_id)
        if node_id == "gone":
            raise ClusterUnreachable("no answer")
        return {"host": "h2" if node_id == "other" else "h1", "orphans": [], "spans": []}


def test_each_host_testifies_once_whichever_of_its_nodes_answers(tmp_path: Path) -> None:
    stack, gangs, nothing = Stack(Home(tmp_path)), TwiceOnTheList(), cast(Any, None)
    looks = Campaign(Plan(), stack, nothing, cast(Any, gangs))._look("j", ["t"], ["h1"])
    assert sorted(look["host"] for look in looks) == ["h1", "h2"]
    assert sorted(gangs.asked) == ["gone", "new", "other"], "no host is asked again that has answered"


def test_credentials_of_the_plan_reach_the_canary(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("canary: {credentials: {from_env: [AWS_ACCESS_KEY_ID]}}")
    plan = read_plan(path)
    assert canary_spec(plan.canary, 10).credentials.from_env == ("AWS_ACCESS_KEY_ID",)


@pytest.mark.parametrize(("misses", "tries"), [(0, 1), (1, 2), (5, 3)])
def test_fault_that_came_too_late_is_tried_again_on_a_longer_job(
    misses: int, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = Campaign(Plan(), Stack(Home(tmp_path)), cast(Any, None), cast(Any, None))
    steps: list[int] = []

    def tried(fault: Fault, spec: JobSpec) -> Trial:
        arguments = list(spec.program.args)
        steps.append(int(arguments[arguments.index("--steps") + 1]))
        campaign.unjudged.append(f"canary-{len(steps)}")
        return trial(len(steps), *([MISSED] if len(steps) <= misses else []))

    monkeypatch.setattr(campaign, "_try", tried)
    found = campaign.try_one(Fault(seed=42, number=1, kind="stop_ray_node", at=0.6, pick=0.0))
    assert len(steps) == tries and steps == sorted(steps) and (tries < 3 or steps[-1] > steps[0])
    assert found.wrong == ((MISSED,) if misses > 2 else ()), "it is never taken for a pass"
    assert campaign.unjudged == [f"canary-{number}" for number in range(1, tries)], "these are asked for at the end"


def trial(number: int, *wrong: str) -> Trial:
    return Trial(
        fault=Fault(seed=42, number=number, kind="kill_worker", at=0.5, pick=0.1),
        job=f"canary-{number}",
        struck={"what": "worker", "at": 100.0 + 10 * number, "attempt": 1, "trained": True},
        wrong=wrong,
        causes=("crash", "done"),
        submitted_at=95.0 + 10 * number,
        ended_at=104.0 + 10 * number,
        back_after_s=3.0 + number,
        step=17,
    )


def findings(*trials: Trial, **more: Any) -> Findings:
    return Findings(trials=trials, where="here", when="today", code="0123abcd", plan={"seed": 42}, **more)


def test_report_names_the_seed_the_counts_and_what_went_wrong() -> None:
    text = page(findings(trial(1), trial(2, "orphans on b: [7]")), picture=None)
    assert "Seed 42" in text and "1 of 2 passed" in text and "Orphans after all faults: 1" in text
    assert "code 0123abcd" in text
    assert "| kill_worker | 2 | 1 | 2 | 4.5 (5.0) |" in text
    assert "fault 2 of seed 42, kill_worker at 50% of the steps (step 17) of canary-2: orphans on b: [7]" in text
    assert "Left of any" not in text, "it is not over"
    silent = page(findings(trial(1, f"b {UNASKED}"), at_the_end=("orphans on c",)), picture=None)
    assert "could not be asked: 1" in silent and "own word: orphans on c." in silent


def test_report_tells_the_code_of_all_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control plane and the oracle are tried as much as what runs on nodes."""
    names: list[str] = []

    def noted(folders: Any) -> dict[str, Path]:
        names.extend(found := package_files(folders))
        return found

    monkeypatch.setattr(report, "package_files", noted)
    assert len(report.digest_of_code()) == 12
    assert {"orchestrator/chaos/oracle.py", "cluster/node/supervision.py"} <= set(names)


def test_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read(tmp_path / "chaos.md") is None
    for found in (
        findings(unjudged=("canary-0",)),
        findings(trial(1)),
        findings(trial(1), trial(2, "orphans on b: [7]"), at_the_end=("x",)),
    ):
        write(found, tmp_path / "chaos.md")
        assert read(tmp_path / "chaos.md") == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chaos.json", "chaos.md", "chaos.svg"]
    assert "kill_worker" in (tmp_path / "chaos.svg").read_text() or (tmp_path / "chaos.svg").stat().st_size > 5000
    (tmp_path / "chaos.json").write_text("[]")
    with pytest.raises(SpecError, match="is no report of a campaign"):
        read(tmp_path / "chaos.md")


def test_canary_that_lost_or_repeated_a_step_ends_with_another_state() -> None:
    state = state_after(10)
    assert advance(state_after(9), 10) == state
    assert advance(advance(state_after(9), 10), 10) != state != state_after(9)


def run_canary(store: Path, *, steps: int, commit_every: int, attempt: int = 1) -> int:
    env = {**os.environ, contract.ENV_STORE: f"file://{store}", contract.ENV_JOB: "j"}
    env[contract.ENV_ATTEMPT] = str(attempt)
    words = ["--steps", str(steps), "--step_s", "0.001", "--commit_every", str(commit_every)]
    return subprocess.run([sys.executable, "-m", "cluster.chaos.canary", *words], env=env, check=False).returncode


def test_canary_ends_with_what_is_computed_for_it_however_often_it_commits_and_resumes(tmp_path: Path) -> None:
    for commit_every, first in ((7, 23), (1000, 40)):
        store = tmp_path / f"store-{commit_every}-{first}"
        store.mkdir()
        assert run_canary(store, steps=first, commit_every=commit_every) == 0
        assert first == 40 or run_canary(store, steps=40, commit_every=commit_every, attempt=2) == 0
        newest = CheckpointStore(open_store(f"file://{store}"), "j").newest()
        assert newest is not None
        files = [file.sha256 for file in newest.files if not file.history]
        assert (newest.step, newest.certificate, files) == result(40) != result(39)


@pytest.fixture
def sleeper() -> Any:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_stopped_process_goes_on_by_itself_after_its_pause(sleeper: subprocess.Popen[bytes]) -> None:
    struck = node_faults.strike("stop", "agent", "none", sleeper.pid, 2.0)
    assert struck is not None and struck["pid"] == sleeper.pid
    deadline = time.monotonic() + 60
    while os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:  # the kernel keeps this
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while os.waitid(os.P_PID, sleeper.pid, os.WCONTINUED | os.WNOHANG) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert stat(sleeper.pid) != "T"


def test_who_has_become_another_is_not_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    assert not node_faults._apart(0.0, ["stop", str(sleeper.pid), "1"])
    assert stat(sleeper.pid) != "T"


@pytest.mark.parametrize("end", [SystemExit(143), SpecError("commands.stop_store ended with 1")])
def test_end_in_mid_strike_leaves_nothing_struck(monkeypatch: pytest.MonkeyPatch, end: BaseException) -> None:
    """As by SIGTERM to the campaign while the plan's command runs: it may have done its work by then."""
    ran: list[str] = []

    def run(self: Strikes, name: str, node: dict[str, Any] | None = None) -> None:
        ran.append(name)
        if not name.startswith(("start", "heal")):
            raise end

    monkeypatch.setattr(Strikes, "_run", run)
    stack = SimpleNamespace(home=SimpleNamespace(settings=SimpleNamespace(lease_s=600.0)))
    strikes = Strikes(Plan(pause_s=600.0), cast(Any, None), cast(Any, stack))
    attempt = SimpleNamespace(nodes=[{"host": "h1", "address": "a1"}])
    for kind in ("stop_store", "cut_network"):
        with pytest.raises(type(end)):
            strikes.strike(Fault(seed=1, number=1, kind=kind, at=0.5, pick=0.0), cast(Any, attempt), {})
    assert strikes.mend(at_once=True) == []
    assert sorted(ran) == ["cut", "heal", "start_store", "stop_store"]


def test_killed_victim_is_dead_and_a_missing_one_is_told(sleeper: subprocess.Popen[bytes]) -> None:
    assert node_faults.strike("kill", "agent", "none", sleeper.pid, 0.0) is not None
    sleeper.wait()
    assert not is_alive(sleeper.pid) and sleeper.returncode == -signal.SIGKILL
    assert node_faults.strike("kill", "worker", "no-such-token", None, 0.0) is None


def test_victims_are_told_apart_by_what_they_carry(tmp_path: Path) -> None:
    token = uuid.uuid4().hex
    env = {**os.environ, "REX_TOKEN": token, "RANK_ID": "0"}
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    worker = subprocess.Popen(command, env=env)
    scheduler = subprocess.Popen(command, env={**env, "MS_ROLE": "MS_SCHED"})
    try:
        deadline = time.monotonic() + 60
        while None in [node_faults.find(victim, token, None) for victim in ("worker", "scheduler")]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert node_faults.find("scheduler", token, None) == scheduler.pid
        assert node_faults.find("worker", token, None) == worker.pid
        assert node_faults.find("msrun", token, None) is None
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


def stat(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
