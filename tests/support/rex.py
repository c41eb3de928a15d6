"""Driving rexctl as a user would: commands in processes of their own, waiting on what the store says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cluster.node.processes import find_by_environment
from orchestrator.settings import Home
from orchestrator.stack import ENV_STACK, Stack
from orchestrator.store import Store
from orchestrator.view import job_view

REXCTL = str(Path(sys.executable).with_name("rexctl"))
COUNTING = str(Path(__file__).with_name("counting_program.py"))

SECRET = "s3cr3t-of-the-tests-0b7d"  # in every command's environment; may be nowhere else


class Rex:
    """One state directory and the commands on it."""

    def __init__(self, home: Path, **settings: Any) -> None:
        """`slots` among the settings: tests of what does not fit must not depend on the size of the machine."""
        if settings:
            home.mkdir(exist_ok=True)
            (home / "config.yaml").write_text(yaml.safe_dump(settings))
        self.home = Home(home)
        self.stack = Stack(self.home)
        self.extra: dict[str, str] = {}  # more of the user's environment

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "REX_HOME": str(self.home.path),
            "COLUMNS": "200",
            "REX_TEST_SECRET": SECRET,
            **self.extra,
        }

    @cached_property
    def store(self) -> Store:
        return Store(self.home.database_url)

    def __call__(self, *arguments: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [REXCTL, *arguments], env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def json(self, *arguments: str, timeout_s: float = 300.0) -> Any:
        """Run a command with --json that must not fail; what it printed last."""
        done = self(*arguments, "--json", timeout_s=timeout_s)
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout[done.stdout.index("{" if "{" in done.stdout else "[") :])

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        return subprocess.Popen(
            [REXCTL, *arguments],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def submit(self, spec: Path) -> str:
        return str(self.json("submit", str(spec))["job_id"])

    def status(self, job: str) -> dict[str, Any]:
        """What `rexctl status --json` prints, read in this process: polling is not to load the machine."""
        return job_view(self.store, job, mlflow_uri=self.stack.mlflow_uri)

    def wait(self, job: str, wanted: Callable[[dict[str, Any]], bool], *, timeout_s: float = 300.0) -> dict[str, Any]:
        """Poll the status until `wanted` holds; the time-out is there for a broken product, not for a slow one."""
        deadline = time.monotonic() + timeout_s
        while not wanted(status := self.status(job)):
            if time.monotonic() > deadline:
                log = (self.home.logs / "control.log").read_text(errors="replace")[-4000:]
                raise AssertionError(f"waited in vain; last seen: {json.dumps(status, indent=1)}; control plane: {log}")
            time.sleep(0.2)
        return status

    def wait_for_rank(self, job: str, rank: int, *, past: int = 0) -> int:
        """Wait until a rank has made more than `past` steps; its process.

        The job's progress is that of its first rank. Ranks that share no all-reduce come one after another, and on a
        full machine the last has not been heard of when the first is far.
        """

        def pids(status: dict[str, Any]) -> list[int]:
            return [r["pid"] for r in status["ranks"] if r["rank"] == rank and r["step"] > past]

        (pid,) = pids(self.wait(job, lambda status: bool(pids(status))))
        return pid

    def finish(self, job: str, *, timeout_s: float = 300.0) -> dict[str, Any]:
        """Wait for the job's end and for its last effects."""
        self.wait(job, lambda s: s["state"] in ("succeeded", "failed", "cancelled"), timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s
        while self.store.pending_effects(job):
            assert time.monotonic() < deadline, self.store.pending_effects(job)
            time.sleep(0.2)
        return self.status(job)

    def tokens(self, job: str) -> list[str]:
        return [attempt.token for attempt in self.store.attempts(job)]

    def processes(self, job: str) -> list[int]:
        """Every live process of any attempt of the job; those that watched it have a minute to leave after it."""
        deadline = time.monotonic() + 60
        while True:
            ranks, watchers = (
                [pid for token in self.tokens(job) for pid in find_by_environment(name, token)]
                for name in ("REX_TOKEN", "REX_SUPERVISES")
            )
            if ranks or not watchers or time.monotonic() > deadline:
                return ranks + watchers
            time.sleep(0.2)

    def own_processes(self) -> list[int]:
        """Every live process that the local stack started."""
        return find_by_environment(ENV_STACK, self.stack.token)


def counting_spec(path: Path, *arguments: object, name: str = "count", **more: Any) -> Path:
    """A job file for the counting program."""
    spec = {
        "name": name,
        "gang": {"nodes": 1, "workers_per_node": 2},
        "program": {"script": COUNTING, "args": [str(argument) for argument in arguments]},
        "retry": {"backoff_s": 0.2},
        **more,
    }
    path.write_text(yaml.safe_dump(spec))
    return path
