"""The supervisor: one process per node and attempt, outside Ray's process tree, that owns msrun and its workers.

Started by the agent as `python -m cluster.node.supervisor DIRECTORY FD [FD]`: reads DIRECTORY/start.json, talks JSON
lines on the inherited socket FD, and forks itself off first, because Ray kills an actor's direct children. On node 0 a
second inherited socket is the one on which the other nodes' supervisors call. What it does is in `supervision`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cluster.launch import LaunchPlan
from cluster.logs.shipping import start_shipping
from cluster.node.ending import ENV_SUPERVISES
from cluster.node.link import Link
from cluster.node.peers import Peers
from cluster.node.processes import end_by_environment
from cluster.node.released import START_FILE
from cluster.node.supervision import Supervisor
from cluster.preflight.in_use import hold_code
from jobs.contract import ENV_TOKEN


def main() -> int:
    directory, handles = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
    if os.fork() > 0:
        return 0  # the agent waits for this one; the other belongs to init
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    link, *calls = (socket.socket(fileno=handle) for handle in handles)
    return run(directory, Link(link), calls)


def run(directory: Path, link: Link, calls: Sequence[socket.socket]) -> int:
    """Supervise the attempt that the start file tells of; what goes wrong here ends it, and the agent hears why."""
    try:
        log = os.open(directory / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _supervise(directory, link, calls)
    except Exception as error:
        with suppress(OSError):  # of a full disk
            traceback.print_exc()
        end_by_environment(ENV_TOKEN, os.environ[ENV_SUPERVISES])  # now; our own end would not wait for theirs
        link.send({"kind": "failed", "message": f"{socket.gethostname()}: {type(error).__name__}: {error}"})
        _say_all(link)
        return 1
    return 0


def _supervise(directory: Path, link: Link, calls: Sequence[socket.socket]) -> None:
    start = json.loads((directory / START_FILE).read_text())
    plan = LaunchPlan.from_json(start["plan"])
    node_rank, master = int(start["node_rank"]), (start["master_addr"], int(start["master_port"]))
    hold_code(plan.code_root(node_rank))
    peers = Peers(plan.token, node_rank, plan.nodes)
    interface, lease_until = start["interface"] or None, float(start["lease_until"])
    supervisor = Supervisor(
        plan, node_rank, master, link=link, peers=peers, lease_until=lease_until, interface=interface
    )
    supervisor.start()
    if calls:
        peers.accept_on(calls[0])
    elif plan.nodes > 1:
        peers.connect((master[0], int(start["peers_port"])))
    record = supervisor.follow()
    supervisor.cpus.release()  # before the word that lets the next attempt start
    link.send({"kind": "ended", "record": record})
    _say_all(link)
    start_shipping(plan, supervisor.node_rank)


def _say_all(link: Link) -> None:
    """The last words: wait until the agent has taken them, or is gone."""
    link.sock.setblocking(True)
    link.flush()


if __name__ == "__main__":
    sys.exit(main())
