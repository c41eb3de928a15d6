"""One attempt on one node, as its supervisor sees it: msrun, the ranks' shims, the agent, the other nodes, the lease.

It starts msrun, listens to the rank shims, ends the whole tree at the first fault, when told to, when its agent's end
of the link closes, or when the node's lease runs out; sweeps /proc for the attempt's token; and leaves a record of how
it all ended. Workers get SIGTERM directly: msrun would orphan them.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.launch import LaunchPlan
from cluster.lease import boottime
from cluster.logs.files import NODE_LOGS, SCHEDULER_LOG, LogKeeper, log_path, worker_log
from cluster.node import binding, stacks
from cluster.node.certify import certified_before
from cluster.node.cpus import CpuClaim
from cluster.node.ending import (
    blank_record,
    failed,
    outcomes_on_disk,
    say,
    write_ended,
)
from cluster.node.endpoint import HCCL_PORTS, free_ports
from cluster.node.hang import HangWatch
from cluster.node.inbox import Inbox
from cluster.node.link import Link
from cluster.node.msrun import MsrunCommand, build_msrun, namespace_prefix
from cluster.node.peers import Peers
from cluster.node.processes import end_by_environment, start_afresh
from cluster.node.released import released
from cluster.node.shims import Shims
from cluster.node.work import WorkMeter, work_seconds
from cluster.outcome.last_words import OomCount
from cluster.outcome.stops import AGENT_GONE, LEASE_OVER, PEER_FAULT, PEER_HANGS
from jobs.contract import ENV_TOKEN, Exit, Outcome, Phase, checked_heartbeat

_TICK_S = 0.1
_METER_S = 1.0  # how often a rank's work is looked at
_SHIMS_S = 1.0  # how often it is looked at who has ended without being heard
_ALIVE_S = 1.0  # how often the agent hears from a supervisor that has nothing to say
_LEAST_DUMP_S = 1.0
_SCHEDULER_GRACE_S = 15.0  # from the last worker's good end to that of msrun's scheduler process


class Supervisor:
    """One attempt on one node, from msrun's start to the record of its end."""

    def __init__(
        self,
        plan: LaunchPlan,
        node_rank: int,
        master: tuple[str, int],
        *,
        link: Link,
        peers: Peers,
        lease_until: float,
        interface: str | None,
    ) -> None:
        self.plan, self.node_rank, self.master, self.link, self.peers = plan, node_rank, master, link, peers
        self.lease_until = lease_until  # by boottime
        self.interface = interface
        self.oom_before = OomCount.now()
        self.said_alive = 0.0
        self.hangs = HangWatch(plan.hang_s)
        self.meters: dict[int, WorkMeter] = defaultdict(WorkMeter)
        self.metered: dict[int, float] = {}
        self.directory = Path(plan.directory(node_rank))
        self.cpus = CpuClaim(plan.workers_per_node * plan.cpus_per_worker)
        self.socket_name = f"rex-{plan.token}-{node_rank}"
        self.inbox = Inbox(self.socket_name)
        self.shims = Shims()
        self.looked_at_shims = 0.0
        self.mute: dict[int, int] = {}  # ranks that had ended without a word when that was looked at, and their shims
        self.outcomes: dict[int, dict[str, Any]] = {}
        self.stop_why: str | None = None
        self.stop_deadline: float | None = None
        self.fault: dict[str, Any] | None = None
        self.good_since: float | None = None
        first = node_rank * plan.workers_per_node
        names = [SCHEDULER_LOG, *NODE_LOGS, *(worker_log(first + i) for i in range(plan.workers_per_node))]
        self.logs = LogKeeper([log_path(self.directory, name) for name in names], plan.log_limit_bytes)
        self.msrun: subprocess.Popen[bytes] | None = None
        self.msrun_exit: int | None = None

    # -- what happens

    def command(self) -> MsrunCommand:
        return build_msrun(
            self.plan,
            node_rank=self.node_rank,
            master_addr=self.master[0],
            master_port=self.master[1],
            cpus=self.cpus.cpus,
            socket_name=self.socket_name,
            node_env=os.environ,
            interface=self.interface,
            hccl_base_port=free_ports("0.0.0.0", HCCL_PORTS) if self.plan.npus_per_node else None,
            numa_of=binding.numa_of_cpus(),
        )

    def start(self) -> None:
        """Start msrun. RuntimeError if this node may not have the attempt any more."""
        if boottime() > self.lease_until or certified_before(self.directory):
            # Whoever was stopped and goes on now; a sweep finds us, but not an agent that had not started us yet.
            raise RuntimeError("this attempt's time here was over before msrun was started")
        for name in ("logs", "reports", "cwd"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        command = self.command()
        prefix = namespace_prefix(self.plan.isolate)
        with (self.directory / "msrun.log").open("wb") as log:
            # The environment is not written down: it may hold credentials that the spec names.
            log.write(f"{' '.join([*prefix, *command.argv])}\n".encode())
            log.flush()
            self.msrun = subprocess.Popen(
                [*prefix, *command.argv],
                env=command.env,
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=start_afresh,  # noqa: PLW1509 - this process has one thread
            )
        self.link.send({"kind": "started", "cpus": list(self.cpus.cpus), "pid": os.getpid(), "at": time.time()})

    def follow(self) -> dict[str, Any]:
        """Watch until nothing of the attempt is left on this node; returns the record of its end."""
        self._watch()
        self._read_inbox()  # what came with the last words
        if self.stop_why in (AGENT_GONE, LEASE_OVER) or (self.stop_why is None and self.good_since is None):
            self.peers.tell(hang=False)  # before the sweep, which may take its time
        survivors = self._end_tree()
        self.logs.close()
        self._collect_outcomes()
        record = self._record(survivors)
        self.peers.close(good=not failed(record))
        return record

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.inbox.sock, selectors.EVENT_READ, self._read_inbox)
            selector.register(self.link.sock, selectors.EVENT_READ, self._read_link)
            while not self._finished():
                for key, _ in selector.select(_TICK_S):
                    key.data()
                self._listen_to_peers()
                self._look_for_hangs()
                if boottime() - self.looked_at_shims > _SHIMS_S:
                    self.looked_at_shims = boottime()
                    self._look_for_the_unheard()
                self._say_alive()
                for told in self.logs.tend():
                    say(told)
                self.link.flush()

    def _look_for_the_unheard(self) -> None:
        """Ranks that have ended, and whose word was lost: a full socket drops it, and a killed shim has none."""
        alive, gone = self.shims.alive(), self.shims.gone()  # first: what these had to say has arrived by now
        self._read_inbox()
        try:
            on_disk = outcomes_on_disk(self.directory)
        except OSError:
            return  # not known, and no reason to end a rank that may have ended well: the next look may tell
        for rank, outcome in on_disk.items():
            self._note_outcome(rank, outcome)
        mute = {rank: pid for rank, pid in gone.items() if rank not in self.outcomes}
        # All of them at once is how it looks when msrun ends: that is seen in a moment, and is the better word.
        if alive or mute == self.mute:
            for rank, pid in mute.items():
                self._note_outcome(rank, asdict(self._killed(rank, pid)))
        self.mute = mute

    def _killed(self, rank: int, pid: int) -> Outcome:
        oom, reason = OomCount.now().since(self.oom_before), "its shim was killed"
        return Outcome(
            rank=rank, pid=pid, code=None, signal=int(signal.SIGKILL), reason=reason, oom=oom, at=time.time()
        )

    def _listen_to_peers(self) -> None:
        bad = self.peers.heard()
        if bad is not None:
            self._stop(PEER_HANGS if bad.hang else PEER_FAULT, 0.0)

    def _tell_fault(self) -> None:
        """To the other nodes: straight, and by way of the agent, for where nothing but Ray's ports is open."""
        assert self.fault is not None
        self.peers.tell(hang="hang" in self.fault)
        self.link.send({"kind": "fault", **self.fault})

    def _look_for_hangs(self) -> None:
        hanging = self.hangs.hanging(boottime()) if self.fault is None and self.stop_why is None else []
        if hanging:
            worst = hanging[0]
            self.fault = {"rank": worst.rank, "code": None, "signal": None, "hang": str(worst), "at": time.time()}
            self._tell_fault()
            self._dump_stacks()

    def _dump_stacks(self) -> None:
        """What all ranks of this node are doing, before they are killed; some seconds, in which the link is silent.

        Never beyond the lease, and no reason to end: what cannot be written is only said.
        """
        within_s = min(stacks.LONGEST_S, self.lease_until - boottime())
        if within_s < _LEAST_DUMP_S:
            return say("no stack dumps: the lease is over")
        try:
            shims, reports = self.shims.alive(), self.directory / "reports"
            written = stacks.dump(shims, reports, self.directory / "stacks", within_s=within_s)
        except OSError as error:
            return say(f"no stack dumps: {error}")
        return say(f"wrote {len(written)} stack dumps to {self.directory / 'stacks'}")

    def _say_alive(self) -> None:
        if boottime() - self.said_alive > _ALIVE_S:
            self.said_alive = boottime()
            self.link.send({"kind": "alive"})

    def _finished(self) -> bool:
        """Is it time to end the tree (or has it ended)?"""
        assert self.msrun is not None
        if self.msrun_exit is None:
            self.msrun_exit = self.msrun.poll()
        if self.link.closed:
            self.stop_why = self.stop_why or AGENT_GONE
        expired = boottime() > self.lease_until
        if expired:
            self.stop_why = self.stop_why or LEASE_OVER
        late = self.stop_deadline is not None and time.monotonic() > self.stop_deadline
        over = late or expired or self.link.closed
        return over or self.msrun_exit is not None or self.fault is not None or self._all_good()

    def _all_good(self) -> bool:
        """All workers ended well, and so did msrun's scheduler process if other nodes may need it (or it had its time).

        msrun itself is not waited for: it takes seconds to notice, and knows no more.
        """
        if self.good_since is None:
            return False
        return (
            self.plan.nodes == 1
            or self.node_rank != 0
            or -1 in self.outcomes
            or time.monotonic() - self.good_since > _SCHEDULER_GRACE_S
        )

    def _read_link(self) -> None:
        for message in self.link.receive():
            if message["do"] == "stop":
                self._stop(message["why"], float(message["grace_s"]))
            elif message["do"] == "lease" and boottime() < self.lease_until:  # one that has run out stays so
                self.lease_until = float(message["until"])

    def _stop(self, why: str, grace_s: float) -> None:
        """Ask the workers to drain; a second request may only shorten the grace."""
        deadline = time.monotonic() + (grace_s if self.shims else 0.0)  # no worker yet: nothing to drain
        if why == PEER_HANGS and self.stop_why is None:
            self._dump_stacks()
        self.stop_why = self.stop_why or why
        self.stop_deadline = min(deadline, self.stop_deadline or deadline)
        for rank in self.shims.alive():
            self._terminate(rank)

    def _terminate(self, rank: int) -> None:
        if rank >= 0 and rank not in self.outcomes:
            self.shims.terminate(rank)

    def _read_inbox(self) -> None:
        for data, pid in self.inbox.receive():
            try:
                self._hear(json.loads(data), pid)
            except (ValueError, KeyError, TypeError) as error:
                # The program wrote this; a malformed datagram tells nothing and must not end its own supervision.
                say(f"ignored a malformed datagram: {error!r}: {data[:200]!r}")

    def _hear(self, message: dict[str, Any], pid: int | None) -> None:
        """One datagram, and who sent it."""
        kind, rank = message["kind"], int(message["rank"])
        if kind == "hello":
            if pid is not None:
                self.shims.hello(rank, pid)
            if self.stop_why is not None:
                self._terminate(rank)
        elif kind == "heartbeat":
            beat = checked_heartbeat(message)
            self.hangs.heard(beat, boottime())
            self.link.send({**beat, "kind": kind, "pid": pid, "work_s": self._work_s(rank, beat, pid)})
        elif kind == "outcome":
            self._note_outcome(rank, message)

    def _work_s(self, rank: int, beat: dict[str, Any], pid: int | None) -> float | None:
        """Seconds of work and of waiting for data for a step of training, looked at once a second."""
        if beat["phase"] != Phase.TRAINING:
            self.meters[rank].clear()
        elif pid is not None and boottime() - self.metered.get(rank, 0.0) > _METER_S:
            self.metered[rank] = boottime()
            work_s = work_seconds(pid)
            if work_s is not None:
                self.meters[rank].add(beat["step"], work_s + beat["seconds"].get("data_wait", 0.0))
        return self.meters[rank].per_step()

    def _note_outcome(self, rank: int, outcome: dict[str, Any]) -> None:
        if rank in self.outcomes:
            return
        self.outcomes[rank] = outcome
        self.hangs.ended(rank)
        good = outcome["code"] in (Exit.DONE, Exit.DRAINED)
        if not good and self.fault is None:
            self.fault = {"rank": rank, "code": outcome["code"], "signal": outcome["signal"]}
            self._tell_fault()
        if sum(1 for done in self.outcomes if done >= 0) == self.plan.workers_per_node:
            self.good_since = time.monotonic()

    # -- the end

    def _end_tree(self) -> list[int]:
        assert self.msrun is not None
        self.msrun.kill()
        self.msrun_exit = self.msrun_exit if self.msrun_exit is not None else self.msrun.wait()
        return end_by_environment(ENV_TOKEN, self.plan.token)

    def _collect_outcomes(self) -> None:
        """Outcomes are on disk before they are sent: what the socket lost is there."""
        self.outcomes = outcomes_on_disk(self.directory) | self.outcomes

    def _record(self, survivors: list[int]) -> dict[str, Any]:
        record = {
            **blank_record(self.node_rank, self.stop_why),
            "fault": self.fault,
            "outcomes": [self.outcomes[rank] for rank in sorted(self.outcomes)],
            "msrun_exit": self.msrun_exit,
            "survivors": survivors,
            "oom": OomCount.now().since(self.oom_before),
            **released(self.directory, self.node_rank),
        }
        write_ended(self.directory, record)
        return record
