"""Records real ends for the table of exits: `python -m tests.support.record_exits [NAME...]`, on this machine.

Each goes to tests/unit/recorded/exits/NAME.json: how it was made, and the outcome that the rank shim left of every
rank. What Ascend hardware says is not made here: those files cite what documentation prints.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.launch import LaunchPlan
from cluster.node.endpoint import hold_port
from cluster.node.msrun import build_msrun
from cluster.node.processes import die_with_parent, end_by_environment
from jobs.contract import ENV_TOKEN

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "tests" / "unit" / "recorded" / "exits"
PROGRAM = str(Path(__file__).with_name("ending_program.py"))
SHIM = str(REPOSITORY / "cluster" / "node" / "shim.py")


def _port() -> int:
    held = hold_port("127.0.0.1")
    held.release()
    return held.port


@dataclass
class Run:
    """msrun on this machine with our shim, as a supervisor starts it, until told otherwise."""

    way: tuple[str, ...]
    workers: int = 1
    of: int | None = None  # ranks in all; more than `workers`: some never come
    options: tuple[str, ...] = ()
    cgroup: Path | None = None
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="exits")))
    port: int = field(default_factory=_port)

    def __post_init__(self) -> None:
        plan = LaunchPlan(
            job="recorded", attempt=1, token=f"recorded-{os.getpid()}", nodes=1, workers_per_node=self.workers,
            cpus_per_worker=1, npus_per_node=0, program=("script", PROGRAM, *self.way), work_root=str(self.folder),
        )  # fmt: skip
        self.token, self.directory = plan.token, Path(plan.directory(0))
        for name in ("logs", "reports", "cwd"):
            (self.directory / name).mkdir(parents=True)
        command = build_msrun(
            plan, node_rank=0, master_addr="127.0.0.1", master_port=self.port, cpus=(0,), socket_name="",
            node_env=os.environ,
        )  # fmt: skip
        total = str(self.of or self.workers)
        argv = [f"--worker_num={total}" if word.startswith("--worker_num") else word for word in command.argv]
        argv[1:1] = self.options
        with (self.directory / "msrun.log").open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                env=command.env,
                cwd=command.cwd,
                stdout=log,
                stderr=log,
                preexec_fn=self._enter,  # noqa: PLW1509 - one thread
            )

    def _enter(self) -> None:
        die_with_parent()
        if self.cgroup is not None:
            (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))

    def log(self, rank: int) -> str:
        path = self.directory / "logs" / (f"worker_{rank}.log" if rank >= 0 else "scheduler.log")
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, rank: int, words: str) -> None:
        deadline = time.monotonic() + 180
        while words not in self.log(rank):
            assert time.monotonic() < deadline and self.process.poll() is None, self.log(rank)
            time.sleep(0.1)

    def child(self, rank: int) -> int:
        """The program's process id: its shim's only child."""
        log = self.directory / "logs" / (f"worker_{rank}.log" if rank >= 0 else "scheduler.log")
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                mine = (entry / "fd" / "1").readlink() == log and words[1] == PROGRAM
            except (OSError, IndexError):
                continue
            if mine:
                return int(entry.name)
        raise AssertionError(f"rank {rank} has no program")

    def outcomes(self, wanted: int, timeout_s: float = 300) -> list[dict[str, Any]]:
        """What the shims left, once `wanted` of them have; then everything is ended."""
        deadline = time.monotonic() + timeout_s
        while len(found := sorted((self.directory / "reports").glob("outcome_*.json"))) < wanted:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        time.sleep(1.5)
        said = (self.directory / "msrun.log").read_text(errors="replace")
        end_by_environment(ENV_TOKEN, self.token)
        self.process.kill()
        self.process.wait()
        print(said[-1500:])
        found = sorted((self.directory / "reports").glob("outcome_*.json"))
        return [{**json.loads(path.read_text()), "pid": 0} for path in found]


@contextmanager
def limited_cgroup(mib: int) -> Iterator[Path]:
    """A memory cgroup (v1 or v2, below our own) with a limit; needs root."""
    from cluster.outcome.last_words import _cgroup_file

    ours = _cgroup_file()
    assert ours is not None
    group = ours.parent / f"rex-recorded-{os.getpid()}"
    group.mkdir()
    limit = "memory.max" if ours.name == "memory.events" else "memory.limit_in_bytes"
    (group / limit).write_text(str(mib << 20))
    try:
        yield group
    finally:
        time.sleep(0.5)
        group.rmdir()


def simple(*way: str, wanted: int = 1) -> Callable[[], list[dict[str, Any]]]:
    return lambda: Run(way).outcomes(wanted)


def killed_worker() -> list[dict[str, Any]]:
    run = Run(("wait",))
    run.until(0, "waits")
    os.kill(run.child(0), signal.SIGKILL)
    return run.outcomes(1)


def killed_scheduler() -> list[dict[str, Any]]:
    run = Run(("reduce", "120"), workers=2)
    run.until(0, "step 1 ")
    os.kill(run.child(-1), signal.SIGKILL)
    return run.outcomes(1, 120)


def cgroup_oom() -> list[dict[str, Any]]:
    with limited_cgroup(1000) as group:
        return Run(("eat",), cgroup=group).outcomes(1, 90)


def full_disk() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True)
        try:
            return Run(("disk_full", folder)).outcomes(1)
        finally:
            subprocess.run(["umount", folder], check=True)


def no_more_processes() -> list[dict[str, Any]]:
    """The shim alone in a cgroup of processes (v1 or v2) that has room for no other one; needs root."""
    pids = Path("/sys/fs/cgroup/pids")
    group = (pids if pids.is_dir() else Path("/sys/fs/cgroup")) / f"rex-recorded-{os.getpid()}"
    group.mkdir()
    try:
        (group / "pids.max").write_text("1")
        with tempfile.TemporaryDirectory() as name:
            env = {**os.environ, "RANK_ID": "0", "REX_REPORT_DIR": name}
            subprocess.run(
                [sys.executable, SHIM, "script", PROGRAM, "wait"],
                env=env,
                cwd=name,
                check=False,
                preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
            )
            return [{**json.loads(path.read_text()), "pid": 0} for path in Path(name).glob("outcome_*.json")]
    finally:
        group.rmdir()


def port_taken() -> list[dict[str, Any]]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        return Run(("reduce", "5"), workers=1, port=taken.getsockname()[1]).outcomes(1, 240)


def node_missing() -> list[dict[str, Any]]:
    return Run(("reduce", "5"), workers=1, of=2, options=("--cluster_time_out=15",)).outcomes(2, 240)


def lost_peer() -> list[dict[str, Any]]:
    """Two ranks and a scheduler without msrun, which would kill the one that is left within a second."""
    folder, port = Path(tempfile.mkdtemp(prefix="exits")), _port()
    shims = []
    for role, rank in (("MS_SCHED", 0), ("MS_WORKER", 0), ("MS_WORKER", 1)):
        env = {
            **os.environ, "MS_ROLE": role, "MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "RANK_ID": str(rank),
            "MS_SCHED_PORT": str(port), "MS_NODE_ID": str(rank), "REX_REPORT_DIR": str(folder), "RANK_SIZE": "2",
        }  # fmt: skip
        with (folder / f"{role}_{rank}.log").open("wb") as log:
            command = [sys.executable, SHIM, "script", PROGRAM, "reduce", "120"]
            shims.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder))
    deadline = time.monotonic() + 120
    while "step 1 " not in (folder / "MS_WORKER_1.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = Path(f"/proc/{shims[2].pid}/task/{shims[2].pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    deadline = time.monotonic() + 150
    while len(list(folder.glob("outcome_*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    for shim in shims:
        shim.terminate()
    time.sleep(2)
    for shim in shims:
        shim.kill()
        shim.wait()
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("outcome_*.json"))]
    return [{**outcome, "pid": 0} for outcome in found]


def left_by_peer() -> list[dict[str, Any]]:
    return Run(("reduce", "60", "leaves"), workers=2).outcomes(3, 240)


WAYS: dict[str, tuple[str, Callable[[], list[dict[str, Any]]]]] = {
    "killed_worker": ("kill -9 on a real worker of msrun", killed_worker),
    "traceback": ("a Python program raises ValueError", simple("traceback")),
    "missing_module": ("a Python program imports what is not installed", simple("missing_module")),
    "memory_error": ("a Python program against RLIMIT_AS", simple("memory_error")),
    "numpy_memory": ("NumPy against RLIMIT_AS", simple("numpy_memory")),
    "device_memory": ("MindSpore's CPU allocator against RLIMIT_AS", simple("device_memory")),
    "cgroup_oom": ("a program against the limit of its memory cgroup", cgroup_oom),
    "segfault": ("a program reads address 0", simple("segfault")),
    "full_disk": ("a program fills its disk (tmpfs of 8 MiB)", full_disk),
    "no_more_processes": ("the limit of processes of its cgroup (pids.max) is reached", no_more_processes),
    "killed_scheduler": ("kill -9 on msrun's scheduler process while two workers all-reduce", killed_scheduler),
    "port_taken": ("msrun with a master port on which somebody else listens", port_taken),
    "node_missing": ("one of two workers is never started, --cluster_time_out=15", node_missing),
    "left_by_peer": ("one of two workers that all-reduce ends well, the other goes on", left_by_peer),
    "lost_peer": ("kill -9 on the peer of a worker that all-reduces", lost_peer),
}


def of_no_machine(text: str) -> str:
    """Tracebacks name where this machine has its files."""
    return text.replace(sys.prefix, "/venv").replace(str(REPOSITORY), "/repo")


def main() -> None:
    import mindspore

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or WAYS:
        how, make = WAYS[name]
        outcomes = make()
        source = f"recorded {datetime.date.today()}, MindSpore {mindspore.__version__} on CPU, Python {sys.version[:6]}"
        record = {"how": how, "source": source, "outcomes": outcomes}
        (FOLDER / f"{name}.json").write_text(of_no_machine(json.dumps(record, indent=1)) + "\n")
        print(name, [(o["rank"], o["code"], o["signal"], o["reason"][:150], o["oom"]) for o in outcomes], flush=True)


if __name__ == "__main__":
    main()
