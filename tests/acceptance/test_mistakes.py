"""Bad input: one clear sentence with the key and what is valid, exit 2, nothing half-created."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.rex import Rex, counting_spec


@pytest.fixture
def rex(tmp_path: Path) -> Rex:
    return Rex(tmp_path / "home")


def write(path: Path, **changes: Any) -> Path:
    spec = yaml.safe_load(counting_spec(path).read_text())
    path.write_text(yaml.safe_dump({**spec, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gang": {"noodes": 2}}, "unknown key gang.noodes (did you mean nodes? valid keys: nodes,"),
        ({"priority": "high"}, "priority: input should be a valid integer, got 'high'"),
        ({"data": {"dir": "/does/not/exist"}}, "data.dir /does/not/exist is not a directory"),
        ({"gang": {"nodes": 3}}, "gang.nodes is 3, the local cluster has 1 node"),
        ({"gang": {"workers_per_node": 64, "cpus_per_worker": 9}}, "is 576, the local node has"),
        ({"gang": {"device": "npu"}}, "gang.device is npu, the local node has none"),
        ({"program": {"module": "no.such.module"}}, "program.module no.such.module is not installed"),
        ({"program": {"script": "/no/such/script.py"}}, "program.script /no/such/script.py is not a file"),
        ({"init_from": {"job": "never-was"}}, "init_from.job: nothing was ever submitted here"),
    ],
)
def test_bad_job_file_is_refused_before_anything_exists(
    rex: Rex, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    verb = "submit" if "init_from" in changes else "run"
    done = rex(verb, str(write(tmp_path / "job.yaml", **changes)))
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not rex.home.path.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "/no/such/job.yaml"], "job file /no/such/job.yaml: No such file"),
        (["run"], "run needs one of: a job file, --attach JOB"),
        (["status", "x"], "there is no job store in"),
        (["cancel", "x"], "there is no job store in"),
        (["logs", "x"], "there is no job store in"),
        (["run", "--attach", "x"], "there is no job store in"),
        (["frobnicate"], "No such command"),
    ],
)
def test_command_that_cannot_be_meant_says_so(rex: Rex, arguments: list[str], told: str) -> None:
    done = rex(*arguments)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
    assert not rex.home.path.exists()


def test_bad_settings_are_named(rex: Rex, tmp_path: Path) -> None:
    rex.home.path.mkdir()
    (rex.home.path / "config.yaml").write_text("ray_adress: x\n")
    done = rex("up")
    assert done.returncode == 2 and "ray_adress" in done.stderr and "valid keys: ray_address" in done.stderr


def test_down_without_anything_is_no_error(rex: Rex) -> None:
    assert rex("down").returncode == 0


@pytest.mark.parametrize("verb", ["run", "submit", "status", "logs", "cancel", "resume", "demo", "down", "why"])
def test_every_verb_explains_itself(rex: Rex, verb: str) -> None:
    done = rex(verb, "--help")
    assert done.returncode == 0 and "--home" in done.stdout


def test_dry_run_prints_the_msrun_command_and_starts_nothing(rex: Rex, tmp_path: Path) -> None:
    done = rex("submit", "--dry-run", str(counting_spec(tmp_path / "job.yaml")))
    assert done.returncode == 0, done.stderr
    assert "msrun --worker_num=2 --local_worker_num=2" in done.stdout and "--join=True" in done.stdout
    assert not rex.home.path.exists()


def test_help_needs_none_of_the_heavy_imports() -> None:
    import subprocess
    import sys

    heavy = ("ray", "mindspore", "mlflow", "boto3", "sqlalchemy")
    code = f"import sys, orchestrator.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
