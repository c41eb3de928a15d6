"""The process that ships a node's logs to the object store after an attempt, and then tidies the node's old attempts.

It is started once the record of the attempt's end is written and told, so that neither teardown nor the next attempt
waits for it. It leaves the tree of whoever started it (Ray kills an agent's children) and does **not** carry the
attempt's token: the teardown certificate means that nothing with that token lives, so a process with it would be
killed by the sweep, or would hold the next attempt up. What bounds it instead is an alarm of its own. Only one that
was stopped (SIGSTOP) outlives that; the next one of its job on this host finds it by `REX_SHIPS` and kills it.

Started as `python -m cluster.logs.shipping ORDER`, with the order as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.launch import LaunchPlan
from cluster.logs.attempt_folders import SHIPPED_FILE, AttemptFolder, folders_of, prune
from cluster.logs.files import give_back
from cluster.node.ending import say
from cluster.node.msrun import build_msrun
from cluster.node.processes import find_by_environment, started_at
from cluster.preflight.in_use import hold_code
from jobs import contract
from jobs.errors import RetryableError, RexError

if TYPE_CHECKING:
    from cluster.storage import ObjectStore

ENV_SHIPS = "REX_SHIPS"  # in the shipping process: the job whose logs it ships
GIVE_UP_S = 600.0  # how long it tries to reach a store that does not answer
_ALARM_S = 1200  # after which it ends, whatever holds it up
_WAITS_S = (1, 2, 5, 10, 30, 60)
# Beside what a worker gets: where our packages lie, and what lets `rexctl down` find a local stack's processes.
_OWN = ("PYTHONPATH", "PATH", "REX_STACK")
_NOT_OURS = (contract.ENV_TOKEN, contract.ENV_SOCKET)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be shipped, and how much may stay here."""

    job: str
    attempt: int
    node_rank: int
    work_root: str
    store: str
    protocol: str
    keep_attempts: int
    bound_bytes: int
    code_root: str = ""  # the folder of brought code from which the process runs

    @property
    def directory(self) -> Path:
        return Path(self.work_root) / self.job / f"attempt-{self.attempt}" / f"node-{self.node_rank}"


def start_shipping(plan: LaunchPlan, node_rank: int) -> None:
    """Start the process; returns at once. If that fails it is only said: no attempt's end is to fail on it."""
    order = Order(
        job=plan.job,
        attempt=plan.attempt,
        node_rank=node_rank,
        work_root=plan.work_root,
        store=plan.env.get(contract.ENV_STORE, ""),
        protocol=plan.env.get(contract.ENV_COMMIT_PROTOCOL, "create-only"),
        keep_attempts=plan.keep_attempts,
        bound_bytes=plan.work_bound_bytes,
        code_root=plan.code_root(node_rank),
    )
    if not order.directory.is_dir() or not order.store:
        return  # nothing was written, or nowhere to bring it
    try:
        starter = subprocess.Popen(
            [sys.executable, "-m", "cluster.logs.shipping", json.dumps(asdict(order))],
            env=_environment(plan, node_rank),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        # The next attempt's shipping on this node takes these logs along.
        say(f"action=ship job={plan.job} attempt={plan.attempt} node={node_rank}: not started: {error}")
        return
    threading.Thread(target=starter.wait, name="starts-shipping", daemon=True).start()  # it forks itself off, and ends


def _environment(plan: LaunchPlan, node_rank: int) -> dict[str, str]:
    """A worker's: the credentials that the job's spec names, and no others."""
    # It has no CPUs and no devices of its own, and what cannot be bound or counted is not to keep it from starting.
    plain = replace(plan, bind="none", npus_per_node=0)
    worker = build_msrun(
        plain, node_rank=node_rank, master_addr="", master_port=0, cpus=(), socket_name="", node_env=os.environ
    )
    env = {name: value for name, value in worker.env.items() if name not in _NOT_OURS}
    env.update({name: os.environ[name] for name in _OWN if name in os.environ})
    return {**env, ENV_SHIPS: plan.job}


# -- in the process itself


def ship_and_tidy(order: Order, say: Callable[[str], None], *, give_up_s: float = GIVE_UP_S) -> None:
    """Ship this attempt's logs and those that earlier ones of the job could not, then remove what is too much."""
    from cluster.storage import open_store

    work_root = Path(order.work_root)
    own = (order.attempt, order.node_rank)
    try:
        store = open_store(order.store, order.protocol, profile=os.environ.get("AWS_PROFILE"))
        todo = [
            folder
            for folder in folders_of(work_root, order.job)
            if (folder.ended or (folder.attempt, folder.node_rank) == own) and not folder.is_shipped
        ]
        for folder in todo:
            give_back(folder.path)
        for folder in sorted(todo, key=lambda one: (one.attempt, one.node_rank) != own):
            if not _ship(store, folder, say, give_up_s=give_up_s):
                break  # the store does not answer: the job's next attempt here tries again
    except RexError as error:  # no such store or profile: nothing that trying again would change
        _note(order.directory, say, tries=1, files=0, size_bytes=0, error=str(error))
    for told in prune(work_root, keep_attempts=order.keep_attempts, bound_bytes=order.bound_bytes):
        say(told)


def _ship(store: ObjectStore, folder: AttemptFolder, say: Callable[[str], None], *, give_up_s: float) -> bool:
    from cluster.logs.shipped import ship

    deadline, tries = time.monotonic() + give_up_s, 0
    while True:
        tries += 1
        try:
            files, size_bytes = ship(store, folder.path, folder.attempt, folder.node_rank)
        except RetryableError as error:
            wait_s = _WAITS_S[min(tries, len(_WAITS_S)) - 1]
            if time.monotonic() + wait_s > deadline:
                _note(folder.path, say, tries=tries, files=0, size_bytes=0, error=str(error))
                return False
            say(f"attempt {folder.attempt} node {folder.node_rank}, try {tries}: {error}")
            time.sleep(wait_s)
        except OSError as error:  # a log that cannot be read
            _note(folder.path, say, tries=tries, files=0, size_bytes=0, error=f"{type(error).__name__}: {error}")
            return True
        else:
            _note(folder.path, say, tries=tries, files=files, size_bytes=size_bytes, error=None)
            return True


def _note(
    directory: Path, say: Callable[[str], None], *, tries: int, files: int, size_bytes: int, error: str | None
) -> None:
    """Leave word of how it went, in the folder and in the log of shippings."""
    result = {"at": time.time(), "tries": tries, "files": files, "bytes": size_bytes, "error": error}
    say(f"{directory}: {json.dumps(result)}")
    temporary = directory / (SHIPPED_FILE + ".tmp")
    try:
        temporary.write_text(json.dumps(result, indent=1))
        os.replace(temporary, directory / SHIPPED_FILE)
    except OSError as problem:  # the disk is full, say: then it is shipped once more
        say(f"{directory}: cannot note that: {problem}")


def _end_stuck(job: str) -> None:
    """Kill shipping processes of the job that live although their alarm has rung: they were stopped."""
    ticks = os.sysconf("SC_CLK_TCK")
    for pid in find_by_environment(ENV_SHIPS, job):
        began = started_at(pid)
        if began is not None and time.clock_gettime(time.CLOCK_BOOTTIME) - began / ticks > _ALARM_S + 60:
            os.kill(pid, signal.SIGKILL)


def main() -> int:
    order = Order(**json.loads(sys.argv[1]))
    hold_code(order.code_root)  # before who started us may end, who holds it as well
    if os.fork() > 0:
        return 0  # whoever started us waits for this one; the other belongs to init
    os.setsid()
    os.nice(10)
    signal.alarm(_ALARM_S)
    log = os.open(Path(order.work_root) / order.job / "shipping.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _end_stuck(order.job)
    lock = os.open(Path(order.work_root) / order.job / "shipping.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time: a second one finds what the first one could not ship

    ship_and_tidy(order, lambda line: say(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
