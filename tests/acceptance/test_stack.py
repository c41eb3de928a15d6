"""The stack as a user meets it: brought up once, outliving terminals, taken down without a trace."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cluster.node.processes import descendants, find_by_environment, is_alive, started_at
from tests.support.rex import SECRET, Rex, counting_spec


def ports(rex: Rex) -> list[int]:
    return [service.port for service in rex.stack.running() if service.port]


def test_two_commands_at_once_bring_up_one_stack(rex: Rex, tmp_path: Path) -> None:
    spec = counting_spec(tmp_path / "job.yaml", "--steps", 10)
    both = [rex.start("run", str(spec)) for _ in range(2)]
    outputs = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("starting Ray" in output for output in outputs) == 1
    for name in ("RAY", "MLFLOW", "CONTROL"):
        heads = [
            pid
            for pid in find_by_environment(f"REX_STACK_{name}", rex.stack.token)
            if os.getsid(pid) == pid and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == "1"
        ]
        assert len(heads) == 1, (name, heads)


def test_killed_run_command_stops_nothing_and_attach_finds_the_job(rex: Rex, tmp_path: Path) -> None:
    spec = counting_spec(tmp_path / "job.yaml", "--steps", 80, "--crawl_at", 8, name="orphan")
    before = {row.id for row in rex.store.jobs()}
    command = rex.start("run", str(spec))
    while not (new := {row.id for row in rex.store.jobs()} - before):
        assert command.poll() is None
    (job,) = new
    rex.wait_for_rank(job, 0, past=5)
    command.kill()
    command.communicate()
    assert rex("preempt", job).returncode == 0
    attached = rex("run", "--attach", job, timeout_s=300)
    assert attached.returncode == 0, attached.stdout + attached.stderr
    assert "attempt 1    steps 0 to" in attached.stdout and "preempted" in attached.stdout
    assert "attempt 2" in attached.stdout
    assert rex.processes(job) == []


def test_ctrl_c_cancels_with_a_checkpoint_and_leaves_no_worker(rex: Rex, tmp_path: Path) -> None:
    spec = counting_spec(tmp_path / "job.yaml", "--steps", 5000, name="interrupted")
    before = {row.id for row in rex.store.jobs()}
    command = rex.start("run", str(spec), start_new_session=True)
    while not (new := {row.id for row in rex.store.jobs()} - before):
        assert command.poll() is None
    (job,) = new
    rex.wait_for_rank(job, 0, past=5)
    os.kill(command.pid, signal.SIGINT)
    output, _ = command.communicate(timeout=300)
    assert command.returncode == 1, output
    assert "cancelling, with a checkpoint" in output
    status = rex.finish(job)
    assert status["state"] == "cancelled" and status["checkpoint"]["step"] > 5
    assert rex.processes(job) == []
    assert "rexctl" not in rex("logs", job).stderr


def test_logs_are_kept_by_attempt_and_rank(rex: Rex) -> None:
    job = next(row.id for row in rex.store.jobs() if row.spec.name == "orphan")
    assert "[1] rank 1 of attempt 1 starts" in rex("logs", job, "--attempt", "1", "--rank", "1").stdout
    both = rex("logs", job).stdout
    assert "[0] rank 0 of attempt 2 starts" in both and "[1] rank 1 of attempt 2 starts" in both
    missing = rex("logs", job, "--rank", "7")
    assert missing.returncode == 2 and "no log of rank 7" in missing.stderr
    followed = rex("logs", "-f", job, timeout_s=100)
    assert followed.returncode == 0 and "final" in followed.stdout


def test_secret_named_by_the_job_reaches_the_worker_and_no_file(rex: Rex, tmp_path: Path) -> None:
    arguments = ("--steps", 40, "--need_env", "REX_TEST_SECRET")
    without = rex.finish(rex.submit(counting_spec(tmp_path / "a.yaml", *arguments, name="without")))
    assert without["cause"] == "config" and "REX_TEST_SECRET is not set" in without["detail"]
    credentials = {"from_env": ["REX_TEST_SECRET"]}
    named = rex.submit(counting_spec(tmp_path / "b.yaml", *arguments, name="named", credentials=credentials))
    assert rex.finish(named)["state"] == "succeeded"
    missing = {"from_env": ["REX_TEST_NOT_THERE"]}
    refused = rex.finish(rex.submit(counting_spec(tmp_path / "c.yaml", name="missing", credentials=missing)))
    assert refused["cause"] == "config" and "REX_TEST_NOT_THERE" in refused["detail"]
    # In a process of its own: closing the database's file here would drop the locks of this process's SQLite
    # connection, and a later reader would see yesterday's rows (https://www.sqlite.org/howtocorrupt.html, 2.2).
    looked = ["grep", "-rlsF", SECRET, str(rex.home.path)]
    found = subprocess.run(looked, capture_output=True, text=True, check=False)
    assert rex.home.path.is_dir()
    assert found.stdout == "" and found.returncode in (1, 2), "2: a file went while grep looked"


def test_asking_twice_and_too_late_is_told(rex: Rex) -> None:
    done = next(row.id for row in rex.store.jobs() if row.spec.name == "orphan")
    assert rex("resume", done).returncode == 2
    late = rex("cancel", done)
    assert late.returncode == 2 and "succeeded already" in late.stderr


def test_job_starts_from_another_jobs_weights(rex: Rex, tmp_path: Path) -> None:
    source = next(row for row in rex.store.jobs() if row.spec.name == "orphan")
    spec = counting_spec(tmp_path / "job.yaml", "--steps", 5, name="heir", init_from={"job": source.id, "step": 20})
    job = rex.submit(spec)
    ended = rex.finish(job)
    assert ended["state"] == "succeeded"
    plan = rex.store.attempts(job)[0].plan
    assert plan is not None and "000000020.json" in plan["env"]["REX_INIT_FROM"]
    wrong = counting_spec(tmp_path / "wrong.yaml", name="heir", init_from={"job": source.id, "step": 1})
    refused = rex("submit", str(wrong))
    assert refused.returncode == 2 and "no checkpoint at step 1" in refused.stderr and "valid: " in refused.stderr


def test_verify_names_the_step_at_which_two_runs_part(rex: Rex, tmp_path: Path) -> None:
    """One run was preempted and resumed, one was not, and one has another loss at step 30."""
    whole = next(row.id for row in rex.store.jobs() if row.spec.name == "orphan")
    assert len(rex.store.attempts(whole)) == 2
    alike = rex.submit(counting_spec(tmp_path / "alike.yaml", "--steps", 60, "--step_s", 0.01, name="alike"))
    arguments = ("--steps", 60, "--step_s", 0.01, "--odd_step", 30)
    other = rex.submit(counting_spec(tmp_path / "other.yaml", *arguments, name="other"))
    assert [rex.finish(job)["state"] for job in (alike, other)] == ["succeeded"] * 2
    same = rex("verify", whole, alike)
    assert (same.returncode, same.stderr) == (0, "") and "agree to the bit in all 60 steps" in same.stdout
    parted = rex("verify", alike, other)
    assert parted.returncode == 1 and "part at step 30: losses 0.0333" in parted.stdout and "2.0" in parted.stdout
    assert "whole: steps 1 to 80" in rex("verify", whole).stdout
    assert rex.json("verify", alike, other)["parts_at_step"] == 30


def test_down_drains_what_runs_and_up_goes_on_with_it(rex: Rex, tmp_path: Path) -> None:
    job = rex.submit(counting_spec(tmp_path / "job.yaml", "--steps", 120, "--crawl_at", 8, name="longer"))
    rex.wait_for_rank(job, 0, past=5)
    held = ports(rex)
    down = rex("down")
    assert down.returncode == 0, down.stderr
    assert f"{job} will go on" in down.stdout
    assert rex.own_processes() == [] and rex.processes(job) == []
    for port in held:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))  # nobody holds it
    stopped = rex.status(job)
    assert stopped["state"] == "queued"
    assert "control plane is not running" in rex("status", job).stderr
    assert rex("up").returncode == 0
    ended = rex.finish(job)
    assert ended["state"] == "succeeded"
    assert ended["attempts"][1]["from_step"] == ended["attempts"][0]["to_step"]


def test_ray_asks_for_the_stacks_own_token_whatever_token_the_user_has(rex: Rex, tmp_path: Path) -> None:
    """A local `ray.init()` leaves a token in the user's home, which Ray's head takes as its own from then on, and a
    driver that is given an address does not."""
    assert rex("up").returncode == 0
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("another")
    theirs = {**os.environ, "HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"}
    connect = [sys.executable, "-c", f"import ray; ray.init({rex.stack.ray_address!r}); print('is in')"]
    refused = subprocess.run(connect, env=theirs, capture_output=True, text=True, check=False, timeout=120)
    assert refused.returncode != 0 and "is in" not in refused.stdout and "InvalidAuthToken" in refused.stderr
    let_in = subprocess.run(connect, env={**theirs, **rex.stack.ray_auth}, capture_output=True, text=True, check=False)
    assert let_in.returncode == 0 and "is in" in let_in.stdout, let_in.stderr
    second = Rex(tmp_path / "state")
    second.extra = {"HOME": theirs["HOME"], "RAY_AUTH_TOKEN": "yet-another"}
    try:
        job = second.submit(counting_spec(tmp_path / "job.yaml", "--steps", 3))
        assert second.finish(job)["state"] == "succeeded"
    finally:
        assert second("down", "--now").returncode == 0


def test_removed_state_directory_takes_its_processes_along(tmp_path: Path) -> None:
    """`rm -rf` of a running stack's directory, on a slow disk: nothing is started anew there, and nothing stays."""
    lost = Rex(tmp_path / "lost", slots=2)
    assert lost("up").returncode == 0
    token, services = lost.stack.token, lost.stack.running()
    families = {service.name: descendants(service.pid) for service in services}
    shutil.rmtree(lost.home.logs)
    (lost.home.run / "ray.json").unlink()
    _wait_for_the_end_of(families["ray"])  # the control plane looked meanwhile, and cannot start another
    shutil.rmtree(lost.home.path)
    for family in families.values():
        _wait_for_the_end_of(family)
    assert find_by_environment("REX_STACK", token) == []
    assert not (lost.home.path / "run" / "ray.json").exists()


def _wait_for_the_end_of(family: dict[int, int]) -> None:
    deadline = time.monotonic() + 90
    while left := [pid for pid, at in family.items() if is_alive(pid) and started_at(pid) == at]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
