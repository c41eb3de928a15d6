"""The control-plane process: one per state directory, under a lock file, running the reconcile loop.

It may be killed and started again at any time: what it decided is in the store, what runs goes on without it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time

from filelock import FileLock, Timeout

from cluster.gang import Gangs
from jobs.errors import RetryableError, RexError
from orchestrator.effects import Effects
from orchestrator.loop import Loop
from orchestrator.settings import Home
from orchestrator.stack import Stack
from orchestrator.store import Store
from orchestrator.tracking import Tracking

_LOG = logging.getLogger("rexctl.daemon")
_TICK_S = 0.4
_SERVICES_S = 5.0  # how often the local services are looked at


def serve(home: Home, stopped: threading.Event) -> None:
    """Run the loop until `stopped`; a part that does not answer is waited for, whatever else happens."""
    stack = Stack(home)
    store = Store(home.database_url)
    gangs = Gangs(stack.ray_address)
    effects = Effects(store, gangs, Tracking(stack.mlflow_uri, store), home)
    loop = Loop(store, gangs, effects)
    connected, looked_at = False, time.monotonic()
    while not stopped.is_set():
        try:
            if time.monotonic() - looked_at > _SERVICES_S:
                looked_at = time.monotonic()
                stack.tend(lambda line: _LOG.warning("action=restart_service %s", line))
            if not connected:
                gangs.connect()
                connected = True
            loop.tick()
        except RetryableError as error:
            _LOG.warning("action=retry %s", error)
            connected = connected and not _lost(error)
            stopped.wait(2.0)
        except RexError as error:
            _LOG.error("action=retry %s", error)
            stopped.wait(5.0)
        stopped.wait(_TICK_S)
    effects.shutdown()


def _lost(error: RetryableError) -> bool:
    from jobs.errors import ClusterUnreachable

    return isinstance(error, ClusterUnreachable)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True)
    home = Home.find(parser.parse_args().home)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        lock = FileLock(home.run / "control.lock").acquire(timeout=10)
    except Timeout:
        _LOG.error("action=exit another control plane holds %s", home.run / "control.lock")
        return 3
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with lock:
        serve(home, stopped)
    sys.stderr.flush()
    os._exit(0)  # Ray's client threads may wait on a cluster that is going down; there is nothing left to save


if __name__ == "__main__":
    sys.exit(main())
