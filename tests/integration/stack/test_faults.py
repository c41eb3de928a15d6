"""What would hurt most, on real Ray and real msrun with a program that keeps the contract."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.node.processes import is_alive
from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from orchestrator.chaos.plan import faults, read_plan
from tests.support.rex import Rex, counting_spec

STEPS = 130


def expected(steps: int) -> bytes:
    state = b""
    for step in range(1, steps + 1):
        state = hashlib.sha256(state + str(step).encode()).digest()
    return state


def final_state(rex: Rex, job: str) -> bytes:
    store = CheckpointStore(open_store(rex.store.get(job).store_uri), job)
    newest = store.newest()
    assert newest is not None
    return store.read(newest, "state")


def training_past(step: int) -> Any:
    return lambda s: (
        s["state"] == "running"
        and s["progress"]["step"] > step
        and s["checkpoint"] is not None
        and all(node["agent"] and node["supervisor"] for node in s["nodes"])  # none for a moment, if an agent was late
    )


def lasting_spec(path: Path, until: Path, *arguments: object) -> Path:
    """Of a job that does not end before the test has touched a file, however late it comes to that."""
    return counting_spec(path, "--steps", STEPS, "--crawl_at", 40, "--until", until, "--commit_every", 15, *arguments)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Of a job whose first attempt does not end before something ends it."""
    return counting_spec(tmp_path / "count.yaml", "--steps", STEPS, "--crawl_at", 40, "--commit_every", 15)


def test_killed_worker_leads_to_a_second_attempt_that_resumes(rex: Rex, spec: Path) -> None:
    job = rex.submit(spec)
    rex.wait(job, training_past(20))
    os.kill(rex.wait_for_rank(job, 1), signal.SIGKILL)
    ended = rex.finish(job)
    assert ended["state"] == "succeeded"
    assert [attempt["cause"] for attempt in ended["attempts"]] == ["crash", "done"], ended["attempts"]
    first, second = ended["attempts"]
    assert f"rank 1 on {socket.gethostname()} was killed by signal 9" in first["detail"]
    assert second["from_step"] >= 15 and second["resumed_from"] is not None
    assert final_state(rex, job) == expected(STEPS)
    exits = rex.json("status", job, "--attempt", "1")["exits"]
    assert (exits[0]["rank"], exits[0]["signal"], {end["rank"] for end in exits}) == (1, 9, {0, 1})
    said = rex("status", job, "--attempt", "2").stdout
    assert "rank 0 on" in said and "rank 1 on" in said and said.count("exited 0") == 2
    assert rex.processes(job) == []


def test_preempt_drains_to_a_checkpoint_at_the_very_step(rex: Rex, spec: Path) -> None:
    job = rex.submit(spec)
    rex.wait(job, training_past(20))
    assert rex("preempt", job).returncode == 0
    ended = rex.finish(job)
    first, second = ended["attempts"]
    assert (first["cause"], second["cause"]) == ("preempted", "done")
    assert second["from_step"] == first["to_step"]
    assert ended["seconds"]["lost_work"] == 0
    assert final_state(rex, job) == expected(STEPS)


def test_cancel_keeps_the_checkpoint_and_resume_goes_on_from_it(rex: Rex, spec: Path) -> None:
    job = rex.submit(spec)
    rex.wait(job, training_past(20))
    assert rex("cancel", job).returncode == 0
    ended = rex.finish(job)
    assert ended["state"] == "cancelled" and rex.processes(job) == []
    step = ended["checkpoint"]["step"]
    assert step == ended["attempts"][0]["to_step"]
    assert rex.json("resume", job)["from_step"] == step
    again = rex.finish(job)
    assert again["state"] == "succeeded"
    assert again["attempts"][1]["from_step"] == step
    assert final_state(rex, job) == expected(STEPS)


def test_killed_control_plane_leaves_the_training_untouched(rex: Rex, tmp_path: Path) -> None:
    job = rex.submit(lasting_spec(tmp_path / "c.yaml", gate := tmp_path / "gate"))
    before = rex.wait(job, training_past(20))
    control = rex.stack.service("control")
    assert control is not None
    os.kill(control.pid, signal.SIGKILL)
    time.sleep(1.0)  # real work goes on meanwhile, seen by nobody
    assert all(Path(f"/proc/{rank['pid']}").exists() for rank in before["ranks"])
    assert rex("up").returncode == 0
    gate.touch()
    ended = rex.finish(job)
    assert ended["state"] == "succeeded" and len(ended["attempts"]) == 1, ended["attempts"]
    assert final_state(rex, job) == expected(STEPS)


def test_flipped_byte_in_the_newest_checkpoint_is_found_and_the_one_before_used(rex: Rex, spec: Path) -> None:
    job = rex.submit(spec)
    rex.wait(job, lambda s: (s["checkpoint"] or {"step": 0})["step"] >= 30)  # there is one before the newest
    assert rex("cancel", job).returncode == 0
    cancelled = rex.finish(job)
    newest = cancelled["checkpoint"]["manifest"]
    store = CheckpointStore(open_store(rex.store.get(job).store_uri), job)
    entry = store.load(newest).file("state")
    blob = next(Path(rex.home.path, "objects", job).rglob(entry.sha256))
    body = bytearray(blob.read_bytes())
    body[3] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(body)
    assert rex("resume", job).returncode == 0
    ended = rex.finish(job)
    assert ended["state"] == "succeeded"
    second = ended["attempts"][1]
    assert [bad["manifest"] for bad in second["quarantined"]] == [newest]
    assert 0 < second["from_step"] < cancelled["checkpoint"]["step"]
    assert f"quarantined {newest}" in rex("status", job).stdout
    assert final_state(rex, job) == expected(STEPS)


def test_killed_supervisor_takes_its_workers_along_and_the_job_resumes(rex: Rex, spec: Path) -> None:
    job = rex.submit(spec)
    status = rex.wait(job, training_past(20))
    os.kill(status["nodes"][0]["supervisor"], signal.SIGKILL)
    ended = rex.finish(job)
    assert ended["state"] == "succeeded"
    assert ended["attempts"][0]["cause"] == "infrastructure"
    assert "supervisor was killed" in ended["attempts"][0]["detail"]
    assert rex.processes(job) == []
    assert final_state(rex, job) == expected(STEPS)


@pytest.mark.parametrize("stopped", ["supervisor", "agent"])
def test_stopped_supervisor_or_agent_ends_the_attempt_within_its_lease(rex: Rex, tmp_path: Path, stopped: str) -> None:
    """SIGSTOP: alive, silent, and for nobody to be waited for. Nothing of the attempt runs when the next one starts."""
    job = rex.submit(counting_spec(tmp_path / "c.yaml", "--steps", 5000, "--step_s", 0.3, "--commit_every", 15))
    status = rex.wait(job, training_past(16))
    pid = status["nodes"][0][stopped]
    os.kill(pid, signal.SIGSTOP)
    rex.wait(job, lambda s: len(s["attempts"]) == 2 and s["attempts"][1]["from_step"] is not None)
    assert not is_alive(pid), "whoever was stopped is gone, not just waited out"
    assert rex("cancel", job).returncode == 0
    ended = rex.finish(job)
    assert ended["attempts"][0]["cause"] in ("infrastructure", "node_lost"), ended["attempts"]
    assert ended["attempts"][1]["from_step"] >= 15
    assert rex.processes(job) == []


def test_rank_that_makes_no_step_is_given_up_with_its_stacks_and_the_job_resumes(rex: Rex, tmp_path: Path) -> None:
    program = ("--steps", 80, "--commit_every", 15, "--hang_at", 20, "--fail_rank", 1, "--crawl_at", 30)
    job = rex.submit(counting_spec(tmp_path / "c.yaml", *program, limits={"hang_s": 15}))
    ended = rex.finish(job)
    first, second = ended["attempts"]
    assert (ended["state"], first["cause"], second["cause"]) == ("succeeded", "hang", "done"), ended["attempts"]
    assert f"rank 1 on {socket.gethostname()} made no step" in first["detail"] and "after step 20" in first["detail"]
    stacks = sorted(Path(rex.home.work_root, job, "attempt-1").rglob("stacks/rank_*.txt"))
    assert [path.name for path in stacks] == ["rank_0.txt", "rank_1.txt"]
    assert "hang_here" in stacks[1].read_text() and "State:" in stacks[0].read_text()
    assert rex.processes(job) == []


def test_exit_64_fails_at_once_with_the_programs_own_words(rex: Rex, tmp_path: Path) -> None:
    spec = counting_spec(tmp_path / "c.yaml", "--steps", 50, "--fail_at", 3, "--code", 64)
    ended = rex.finish(rex.submit(spec))
    assert (ended["state"], ended["cause"], len(ended["attempts"])) == ("failed", "config", 1), ended["attempts"]
    assert "told to fail" in ended["detail"]


def test_crashes_end_the_job_when_their_budget_is_spent(rex: Rex, tmp_path: Path) -> None:
    spec = counting_spec(
        tmp_path / "c.yaml", "--steps", 50, "--fail_at", 3, "--code", 7, retry={"crash": 0, "backoff_s": 0.1}
    )
    ended = rex.finish(rex.submit(spec))
    assert (ended["state"], ended["cause"]) == ("failed", "crash")
    assert f"rank 0 on {socket.gethostname()} exited 7" in ended["detail"] and "budget of 0" in ended["detail"]


def test_worker_that_ignores_sigterm_is_killed_after_its_grace(rex: Rex, tmp_path: Path) -> None:
    spec = counting_spec(
        tmp_path / "c.yaml", "--steps", 9999, "--ignore_term", "--commit_every", 10, limits={"drain_grace_s": 2}
    )
    job = rex.submit(spec)
    rex.wait(job, training_past(12))
    assert rex("cancel", job).returncode == 0
    ended = rex.finish(job)
    assert ended["state"] == "cancelled" and rex.processes(job) == []
    assert ended["checkpoint"]["step"] >= 10


def test_job_that_does_not_fit_now_waits_and_says_for_whom(rex: Rex, tmp_path: Path) -> None:
    long = rex.submit(counting_spec(tmp_path / "a.yaml", "--steps", 9999, name="long", priority=5))
    rex.wait(long, lambda s: s["state"] in ("launching", "running"))
    late = rex.submit(counting_spec(tmp_path / "b.yaml", "--steps", 5, name="late"))
    waiting = rex.wait(late, lambda s: long in s["waiting"])
    assert waiting["state"] == "queued"
    assert long in rex("why", late).stdout
    assert rex("cancel", late).returncode == 0
    assert rex("cancel", long).returncode == 0
    assert rex.finish(late)["state"] == "cancelled"
    assert rex.finish(long)["state"] == "cancelled"


def test_cancel_while_the_control_plane_is_down_still_drains(rex: Rex, tmp_path: Path) -> None:
    """The grace counts from when the workers are told, not from the wish: here it has long passed by then."""
    spec = counting_spec(tmp_path / "c.yaml", "--steps", 9999, "--commit_every", 5000)
    job = rex.submit(spec)
    rex.wait(job, lambda s: s["progress"]["step"] > 20)
    control = rex.stack.service("control")
    assert control is not None
    os.kill(control.pid, signal.SIGKILL)
    cancelled = rex("cancel", job)
    assert cancelled.returncode == 0 and "control plane is not running" in cancelled.stderr
    attempt = rex.store.attempts(job)[0]
    rex.store.note_attempt(job, 1, stop_at=(attempt.stop_at or 0.0) - 3600)
    assert rex("up").returncode == 0
    ended = rex.finish(job)
    assert ended["state"] == "cancelled"
    assert ended["checkpoint"]["step"] == ended["attempts"][0]["to_step"], "drained, not killed"


def test_stopped_ray_node_is_nothing_to_a_job_that_trains_and_an_ended_campaign_goes_on(
    rex: Rex, tmp_path: Path
) -> None:
    plan, report = tmp_path / "plan.yaml", tmp_path / "report.md"
    canary = "{steps: 20, step_s: 0.6, commit_every: 5}"  # not a hang for 12 s
    plan.write_text(f"{{kinds: [stop_ray_node], count: 2, pause_s: 4.0, canary: {canary}}}")
    command = ["chaos", str(plan), "--report", str(report)]
    campaign = rex.start(*command)
    while not report.with_suffix(".json").exists():
        assert campaign.poll() is None
        time.sleep(0.1)
    campaign.terminate()
    campaign.communicate(timeout=120)
    begun = json.loads(report.with_suffix(".json").read_text())["trials"]
    done = rex(*command, "--resume")
    assert done.returncode == 0, f"{done.stderr}{report.read_text()}"
    assert f"going on after {len(begun)} of 2 faults" in done.stderr
    trials = json.loads(report.with_suffix(".json").read_text())["trials"]
    assert [trial["causes"] for trial in trials] == [["done"], ["done"]] and trials[: len(begun)] == begun
    assert all(trial["struck"]["what"] == "ray_node" for trial in trials)
    other = rex(*command, "--resume", "--seed", "3")
    assert other.returncode == 2 and "the report is of another plan (seed)" in other.stderr


def test_campaign_that_is_ended_undoes_its_fault_and_leaves_no_job(rex: Rex, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("{kinds: [stop_driver], pause_s: 120.0, canary: {steps: 600, step_s: 0.1}}")
    seed = next(seed for seed in range(100) if faults(read_plan(path, seed=seed))[0].at < 0.17)
    before = {row.id for row in rex.store.jobs()}
    campaign = rex.start("chaos", str(path), "--seed", str(seed))
    control = rex.stack.service("control")
    assert control is not None
    driver = int(Path(f"/proc/{control.pid}/task/{control.pid}/children").read_text().split()[0])
    deadline = time.monotonic() + 300
    while _state(driver) != "T":
        assert campaign.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    try:
        campaign.terminate()
        said, _ = campaign.communicate(timeout=120)
        assert campaign.returncode != 0 and _state(driver) != "T", said
    finally:
        os.kill(driver, signal.SIGCONT)  # or every later test would hang on it
    assert "SIGTERM received" not in said, "Ray's handler gives it three seconds to undo its fault"
    (job,) = {row.id for row in rex.store.jobs()} - before
    assert rex.finish(job)["state"] == "cancelled"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_killed_ray_is_brought_up_again_and_the_job_resumes(rex: Rex, tmp_path: Path) -> None:
    job = rex.submit(lasting_spec(tmp_path / "c.yaml", tmp_path / "gate"))
    rex.wait(job, training_past(20))
    ray = rex.stack.service("ray")
    assert ray is not None
    os.kill(ray.pid, signal.SIGKILL)
    ended = rex.finish(job, timeout_s=300)
    assert ended["state"] == "succeeded", ended
    causes = [attempt["cause"] for attempt in ended["attempts"]]
    assert causes[-1] == "done" and set(causes[:-1]) == {"infrastructure"}, ended["attempts"]
    assert ended["attempts"][-1]["from_step"] >= 15
    assert final_state(rex, job) == expected(STEPS)
    assert rex.processes(job) == []


def test_killed_mlflow_does_not_hold_up_the_job(rex: Rex, tmp_path: Path) -> None:
    """Its connections are refused. One that takes them and answers none is a fault on hosts (`stop_mlflow`)."""
    job = rex.submit(lasting_spec(tmp_path / "c.yaml", gate := tmp_path / "gate"))
    rex.wait(job, training_past(16))
    mlflow = rex.stack.service("mlflow")
    assert mlflow is not None
    os.kill(mlflow.pid, signal.SIGKILL)
    gate.touch()
    ended = rex.finish(job)
    assert (ended["state"], len(ended["attempts"])) == ("succeeded", 1), ended["attempts"]
