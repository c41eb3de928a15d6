"""The node agent: a detached Ray actor that prepares one node, starts its supervisor and speaks for it.

It works on its own: once created it goes on whether or not a control plane is there. When its node fails it tells
the other nodes' agents itself, so that nobody waits for a collective's time-out. It keeps the node's lease, and ends a
supervisor that has stopped answering.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray

from cluster.launch import LaunchPlan
from cluster.lease import Lease, boottime
from cluster.logs.shipping import start_shipping
from cluster.node import binding
from cluster.node.ending import ENV_SUPERVISES, blank_record, complete, failed, sweep, write_ended
from cluster.node.endpoint import HeldPort, choose, hold_port, interfaces
from cluster.node.link import read_lines
from cluster.node.overdue import end_overdue
from cluster.node.processes import rank_as
from cluster.node.released import start_facts, write_start
from cluster.outcome.stops import LEASE_OVER, PEER_FAULT, PEER_HANGS, REVOKED
from cluster.preflight.readiness import why_not_ready, with_code
from cluster.register import HeadRegister
from jobs.contract import ENV_TOKEN, Exit
from jobs.errors import ClusterUnreachable, SpecError

_LOG = logging.getLogger("rexctl.agent")
NAMESPACE = "rexctl"
_SILENT_SHARE = 3  # of a lease: a supervisor says that it is alive every second; one that was stopped does not
_ASK_S = 0.05  # between two questions for node 0's address: it is there within a second, or nobody comes
_SILENT_LEAST_S = 10.0  # it may be writing stacks, for up to 8 s
# Ray imports these, where they are installed, before it hands the first argument to a process: it may hold one of their
# types. Ours never does, and it takes half of the time in which an agent starts (docs/decisions/0010-light-agents.md).
_NOT_NEEDED = ("pyarrow", "pydantic", "starlette")


def agent_name(job: str, attempt: int, node_rank: int) -> str:
    return f"agent/{job}/{attempt}/{node_rank}"


class Agent:
    """One node of one attempt. All public methods return at once; they run beside the working thread."""

    def __new__(cls, *_: Any) -> Agent:
        if ray._private.worker.global_worker.mode == ray.WORKER_MODE:
            for name in _NOT_NEEDED:
                sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # which is how Python says "not installed"
        return super().__new__(cls)

    def __init__(self, plan_json: str, node_rank: int) -> None:
        self._plan = with_code(LaunchPlan.from_json(plan_json), node_rank)
        self._rank = node_rank
        self._directory = Path(self._plan.directory(node_rank))
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._master: tuple[str, int, int] | None = None
        self._interface = ""
        self._held: HeldPort | None = None  # the master port, until the workers have met there
        self._calls: socket.socket | None = None  # where the other nodes' supervisors call that of node 0
        self._phase = "preparing"
        self._ranks: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, Any] | None = None
        self._ended_alone = False  # without a supervisor, or after its death
        self._stop: tuple[str, float] | None = None
        self._started: dict[str, Any] = {}
        self._lease_until: float | None = None  # by boottime; None before the first renewal
        for work in (self._work, self._keep_lease, self._end_overdue):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    # -- called from outside

    def poll(self) -> dict[str, Any]:
        """Where this node is: phase, each local rank's newest heartbeat, and how it ended once it has."""
        with self._lock:
            return {
                "node_rank": self._rank,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "directory": str(self._directory),
                "phase": self._phase,
                "started": self._started,
                "ranks": dict(self._ranks),
                "ended": self._ended,
            }

    def master(self) -> tuple[str, int, int] | None:
        """Address and port of msrun's scheduler, and port of its supervisor, once node 0 has chosen them."""
        return self._master

    def stop(self, why: str, grace_s: float) -> None:
        """Drain and end this node's workers; asking again is harmless and may shorten the grace."""
        with self._lock:
            self._stop = (why, grace_s)
            self._send_stop()

    # -- the working thread

    def _work(self) -> None:
        for problem in rank_as(os.getppid()):  # the Ray node's own process: what it is, is the administrator's choice
            _LOG.warning("action=start %s", problem)
        try:
            self._sweep_earlier()
            self._prepare()
            self._find_master()
            link = self._start_supervisor()
            if link is not None:
                self._listen(link)
            else:
                self._end({"stop_why": self._stop[0] if self._stop else LEASE_OVER})
        except PrepareFailed as failure:
            self._end({"fault": {"rank": None, "code": failure.code}, "message": str(failure)})
        except Exception as error:  # the thread must not die silently: whatever it was ends the attempt, by name
            said = f"agent on {socket.gethostname()}: {type(error).__name__}: {error}"
            self._end({"fault": {"rank": None, "code": None}, "message": said})
        self._tell_peers()
        if self._ended_alone:
            start_shipping(self._plan, self._rank)  # else the supervisor has

    def _may_go_on(self) -> bool:
        """Nobody has asked for the end, and the lease (if there is one yet) has not run out."""
        return self._stop is None and not self._is_overdue()

    def _sweep_earlier(self) -> None:
        """What an attempt left here whose end nobody could certify (its host was cut off) goes first."""
        left = [pid for token in self._plan.earlier_tokens for pid in sweep(token)]
        if left:
            raise PrepareFailed(
                f"{socket.gethostname()} still has processes {left} of an earlier attempt, which SIGKILL does not end",
                int(Exit.INFRASTRUCTURE),
            )

    def _prepare(self) -> None:
        for name in ("logs", "reports", "cwd"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        unbound = binding.problem(self._plan.bind, socket.gethostname())
        if unbound is not None:
            raise PrepareFailed(unbound, int(Exit.CONFIG))
        lacking = [name for name in self._plan.from_env if name not in os.environ]
        if lacking:
            raise PrepareFailed(
                f"credentials.from_env names {', '.join(lacking)}, which {socket.gethostname()} does not have "
                "(the environment in which Ray was started there counts)",
                int(Exit.CONFIG),
            )
        lack = why_not_ready(self._plan, self._rank)
        if lack is not None:
            raise PrepareFailed(lack[0], int(lack[1]))
        if not self._plan.prepare:
            return
        log_path = self._directory / "prepare.log"
        with log_path.open("ab") as log:
            command = [sys.executable, *self._plan.prepare]
            env = {**os.environ, ENV_TOKEN: self._plan.token}  # the sweep is to find it, should we die
            done = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", env=env)
            while done.poll() is None:
                if not self._may_go_on():
                    if not sweep(self._plan.token):  # it, and whatever it has started
                        done.wait()
                    return
                time.sleep(0.1)
        if done.returncode != 0:
            lines = log_path.read_text(errors="replace").strip().splitlines()
            raise PrepareFailed(
                f"preparing {socket.gethostname()} failed: {lines[-1] if lines else 'no output'}", done.returncode
            )

    def _find_master(self) -> None:
        default, host = ray.util.get_node_ip_address(), socket.gethostname()
        try:
            mine = choose(self._plan.interface, default=default, nodes=self._plan.nodes, host=host, known=interfaces())
        except SpecError as error:
            raise PrepareFailed(str(error), int(Exit.CONFIG)) from error
        self._interface = mine.name
        if self._rank == 0:
            self._held = hold_port(mine.address)
            if self._plan.nodes > 1:
                self._calls = hold_port(mine.address).listen(self._plan.nodes)
            self._master = (mine.address, self._held.port, self._calls.getsockname()[1] if self._calls else 0)
            return
        while self._master is None and self._may_go_on():
            try:
                first = ray.get_actor(agent_name(self._plan.job, self._plan.attempt, 0), namespace=NAMESPACE)
                answer = ray.get(first.master.remote(), timeout=10)
            except (ValueError, ray.exceptions.GetTimeoutError):
                answer = None  # not there yet: the gang's nodes start in any order
            self._master = tuple(answer) if answer else None
            if self._master is None:
                time.sleep(_ASK_S)

    def _start_supervisor(self) -> socket.socket | None:
        while self._lease_until is None and self._stop is None:
            time.sleep(0.02)  # the first renewal: no process of an attempt without a lease
        with self._lock:
            if not self._may_go_on() or self._master is None or self._lease_until is None:
                return None
            start = {
                "plan": self._plan.to_json(),
                "node_rank": self._rank,
                **start_facts(*self._master[:2], self._interface, npus=self._plan.npus_per_node),
                "peers_port": self._master[2],
                "lease_until": self._lease_until,
                "host": socket.gethostname(),
                "at": time.time(),
            }
            write_start(self._directory, start)
            ours, theirs = socket.socketpair()
            with theirs:
                handles = [sock.fileno() for sock in (theirs, self._calls) if sock is not None]
                subprocess.run(
                    [sys.executable, "-m", "cluster.node.supervisor", str(self._directory), *map(str, handles)],
                    pass_fds=handles,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, ENV_SUPERVISES: self._plan.token},
                    cwd="/",  # where Ray was started may lie another copy of our packages
                    check=True,
                )
            self._link, self._phase = ours, "starting"
            self._release_calls()
            return ours

    def _listen(self, link: socket.socket) -> None:
        """Hand on what the supervisor says until it says how it ended, is gone, or has been silent for too long."""
        how, silent_s = "was killed", max(_SILENT_LEAST_S, self._plan.lease_s / _SILENT_SHARE)
        code: int | None = None
        for line in read_lines(link, silent_s=silent_s):
            if line is None:
                how = f"said nothing for {silent_s:.0f} s and was killed"
                break
            message = json.loads(line)
            kind = message.pop("kind")
            if kind == "failed":
                how, code = f"failed on {message['message']}", int(Exit.INFRASTRUCTURE)
                break
            if kind == "fault":
                why = PEER_HANGS if "hang" in message else PEER_FAULT
                threading.Thread(target=self._tell_peers, args=(why,), name="tell-peers", daemon=True).start()
            with self._lock:
                if kind == "started":
                    self._started = message
                elif kind == "heartbeat":
                    self._phase = "running"
                    self._release_port()
                    self._ranks[str(message["rank"])] = message
                elif kind == "ended":
                    self._phase, self._ended = "ended", message["record"]
                    return
        self._end({"fault": {"rank": None, "code": code}, "message": f"the supervisor {how}"})

    # -- the lease

    def _keep_lease(self) -> None:
        """Renew the node's lease until the end; say it to the supervisor, which ends its tree when it runs out."""
        lease = Lease(HeadRegister(), (self._plan.job, self._plan.attempt, self._rank), self._plan.lease_s)
        while self._ended is None and self._may_go_on_renewing():
            try:
                until = lease.renew()
            except ClusterUnreachable:
                time.sleep(lease.every_s / 4)  # not knowing: what was granted counts until it has run out
                continue
            if until is None:
                self.stop(REVOKED, 0.0)
                return
            with self._lock:
                self._lease_until = until
                self._send({"do": "lease", "until": until})
            time.sleep(lease.every_s)

    def _may_go_on_renewing(self) -> bool:
        """A lease that has run out stays so: the control plane may have given the node's work to another one."""
        return not self._is_overdue()

    def _is_overdue(self) -> bool:
        return self._lease_until is not None and boottime() >= self._lease_until

    def _end_overdue(self) -> None:
        """The supervisor ends its tree when the lease is over, unless it is stopped, or waits for a dead disk."""
        end_overdue(lambda: self._lease_until, lambda: self._ended is not None, lambda: sweep(self._plan.token))

    # -- ends

    def _end(self, said: dict[str, Any]) -> None:
        """End without (or after the death of) a supervisor: sweep, and leave the record it would have left."""
        overdue = LEASE_OVER if self._is_overdue() else None
        record = {**blank_record(self._rank, self._stop[0] if self._stop else overdue), **said}
        record |= {"survivors": sweep(self._plan.token), "at": time.time()}
        self._release_port()
        self._release_calls()
        record = complete(self._directory, self._rank, record)
        write_ended(self._directory, record)
        with self._lock:
            self._phase, self._ended = "ended", record
        self._ended_alone = True

    def _release_port(self) -> None:
        if self._held is not None:
            self._held.release()

    def _release_calls(self) -> None:
        """The supervisor has the socket, or there will be none: its callers are to hear of its end."""
        if self._calls is not None:
            self._calls.close()

    def _send_stop(self) -> None:
        """Pass a wanted stop on; the caller holds the lock."""
        if self._stop is not None:
            why, grace_s = self._stop
            self._send({"do": "stop", "why": why, "grace_s": grace_s})

    def _send(self, message: dict[str, Any]) -> None:
        """Say something to the supervisor, if there is one; the caller holds the lock."""
        if self._link is None or self._ended is not None:
            return
        try:
            self._link.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return  # the supervisor is gone: the listening thread sees the same and writes the record

    def _tell_peers(self, why: str = PEER_FAULT) -> None:
        """A fault on this node ends the gang on the others, at once."""
        if self._ended is not None and not failed(self._ended):
            return
        for peer in range(self._plan.nodes):
            if peer == self._rank:
                continue
            try:
                actor = ray.get_actor(agent_name(self._plan.job, self._plan.attempt, peer), namespace=NAMESPACE)
                actor.stop.remote(why, 0.0)
            except (ValueError, ray.exceptions.RayError):
                continue  # gone, and its supervisor with it; or unreachable: then the control plane tells it


class PrepareFailed(Exception):
    """The node could not be made ready; `code` is the preparing command's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
