"""The control-plane process: one per state directory, under a lock file, running the reconcile loop.

It may be killed and started again at any time: what it decided is in the store, what runs goes on without it. The
process that holds the lock does nothing but keep a second one alive that serves: Ray's client library may end its
process, or be left with a cluster that is no more, and a fresh process is the remedy for both.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from cluster.node.processes import die_with_parent
from jobs.errors import ClusterUnreachable, RetryableError
from orchestrator.settings import Home
from orchestrator.stack import Service, Stack, end_orphans
from orchestrator.store.changes import Changes

if TYPE_CHECKING:
    from orchestrator.control.loop import Loop
    from orchestrator.store import Store

_LOG = logging.getLogger("rexctl.daemon")
_TICK_S = 0.4  # between two rounds, unless somebody writes to the store
_IDLE_S = 2.0  # the same while no job is active
_LOOK_S = 0.05
_SERVICES_S = 5.0  # how often the local services are looked at
_RESTART_S = (0.5, 1, 2, 5, 10)
_STEADY_S = 60.0  # who served for so long starts with the shortest wait again


def serve(home: Home, stopped: threading.Event) -> int:
    """Run the loop until `stopped`, or until a fresh process is needed (a lost cluster, services that moved)."""
    from cluster.gang import Gangs
    from orchestrator.control.census import Census
    from orchestrator.control.effects import Effects
    from orchestrator.control.fitness import Wanted
    from orchestrator.control.loop import Loop
    from orchestrator.control.provider import Provider
    from orchestrator.control.tracking import Tracking
    from orchestrator.store import Store

    stack = Stack(home)
    store = Store(home.database_url)
    where = (stack.ray_address, stack.mlflow_uri)
    gangs = Gangs(stack.ray_address)
    wanted = Wanted.here(home)
    effects = Effects(store, gangs, Tracking(stack.mlflow_uri, store), home, code=wanted.code.digest)
    census = Census(store, gangs, wanted)
    loop = Loop(store, gangs, effects, census, provider=Provider(home.settings.host_gone_command))
    gangs.connect()
    changes = Changes(store.engine)
    while not stopped.is_set():
        if where != (stack.ray_address, stack.mlflow_uri):
            _LOG.warning("action=restart services have moved from %s", where)
            return 1
        idle = False
        try:
            idle = _round(loop, store, changes)
        except ClusterUnreachable as error:
            _LOG.warning("action=restart %s", error)
            return 1
        except RetryableError as error:
            _LOG.warning("action=retry %s", error)
        except Exception:
            # A bug, or a fault nobody thought of: this tick concluded nothing, and the jobs are as they were.
            _LOG.exception("action=retry")
            stopped.wait(5.0)
        _pause(stopped, changes, _IDLE_S if idle and changes.watched else _TICK_S)
    effects.shutdown()
    return 0


def _round(loop: Loop, store: Store, changes: Changes) -> bool:
    """One round; is there nothing to do? A job that was submitted while it went on is, and must not go unseen."""
    try:
        idle = loop.tick()
    finally:
        changes.seen()  # what this process has just written calls for no further round
    return idle and not store.jobs(active=False)


def _pause(stopped: threading.Event, changes: Changes, most_s: float) -> None:
    """Until the next round is due or somebody else has written: a job that was submitted waits for no clock."""
    due = time.monotonic() + most_s
    while not stopped.wait(_LOOK_S) and time.monotonic() < due and not changes.seen():
        pass


def keep_serving(home: Home, stopped: threading.Event) -> None:
    """Look after the local services, and start the serving process again whenever it ends, later and later while it
    ends soon. One whose Ray was replaced is ended at once: it would wait a minute for the old one."""
    command = [sys.executable, "-m", "orchestrator.daemon", "--home", str(home.path), "--serve"]
    stack, failures = Stack(home), 0
    token, own = stack.token, stack.running()
    while not stopped.is_set() and stack.is_recorded(os.getpid()):
        began = looked_at = time.monotonic()
        child = subprocess.Popen(command, preexec_fn=die_with_parent)  # noqa: PLW1509 - one thread
        while child.poll() is None and not stopped.wait(0.2):
            if time.monotonic() - looked_at > _SERVICES_S:
                ray = stack.service("ray")
                own = _tend(stack, own)
                if not stack.is_recorded(os.getpid()) or (home.embedded_ray and stack.service("ray") != ray):
                    child.kill()
                looked_at = time.monotonic()
        if stopped.is_set():
            child.terminate()
            child.wait()
            return
        failures = 0 if time.monotonic() - began > _STEADY_S else failures + 1
        wait_s = _RESTART_S[min(failures, len(_RESTART_S)) - 1] if failures else 0.0
        _LOG.warning("action=restart the serving process ended with %s, next in %s s", child.wait(), wait_s)
        stopped.wait(wait_s)
    if not stopped.is_set():
        _LOG.warning("action=exit %s is no longer ours: its state directory was removed", home.path)
        end_orphans(token, own)


def _tend(stack: Stack, known: list[Service]) -> list[Service]:
    """Start again what has died; returns what runs. Of a state directory that is being removed, what ran counts too."""
    if not stack.is_recorded(os.getpid()):
        return known
    try:
        stack.tend(lambda line: _LOG.warning("action=restart_service %s", line))
    except OSError as error:  # its folders are going, or its disk is full
        _LOG.warning("action=restart_service %s", error)
    running = stack.running()
    return running if stack.is_recorded(os.getpid()) else [*known, *running]


def _listen(stopped: threading.Event) -> None:
    """Have SIGTERM and SIGINT ask for the end, instead of being it."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True)
    parser.add_argument("--serve", action="store_true", help="be the process that serves")
    given = parser.parse_args()
    home = Home.find(given.home)
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a call before `connect` must fail, not join some other cluster
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stopped = threading.Event()
    _listen(stopped)
    if given.serve:
        try:
            code = serve(home, stopped)
        except RetryableError as error:
            _LOG.warning("action=restart %s", error)
            code = 1
        sys.stderr.flush()
        os._exit(code)  # Ray's client threads may wait on a cluster that is gone; there is nothing left to save
    try:
        lock = FileLock(home.run / "control.lock").acquire(timeout=10)
    except Timeout:
        _LOG.error("action=exit another control plane holds %s", home.run / "control.lock")
        return 3
    with lock:
        keep_serving(home, stopped)
    return 0


if __name__ == "__main__":
    sys.exit(main())
