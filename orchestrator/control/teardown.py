"""No overlap: the proof, node by node, that nothing of an attempt runs any more.

A node proves its end by its own record (its agent's, or one made by a sweep on that very node), or is confirmed lost:
its lease ran out, the provider says that the host is gone, or the host is back as another incarnation. Ray's word alone
is no proof: a host that it calls dead may train on for minutes.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cluster.gang import Gangs, NodeView
from cluster.launch import LaunchPlan
from cluster.lease import Watch
from cluster.node.certify import certify
from cluster.node.released import left
from cluster.preflight.facts import incarnation
from jobs.errors import ClusterUnreachable
from orchestrator.control.elapsed import Elapsed
from orchestrator.control.provider import Provider
from orchestrator.store import AttemptRow, JobRow, Store

_LOG = logging.getLogger("rexctl.teardown")
_RAYS_WORD = 300  # characters of what Ray says of an agent's death
_PORT_S = 30.0  # after which a master port that is still taken counts as a stranger's
_PLACING_S = 5.0  # an agent that was never heard of for so long may be called off

Record = dict[str, Any]


class Teardown:
    """Collects the certificates of ending attempts; what it keeps beside the store may be lost without harm."""

    def __init__(
        self,
        store: Store,
        gangs: Gangs,
        watch: Watch,
        provider: Provider,
        *,
        elapsed: Elapsed,
        steady: Callable[[], float],
    ) -> None:
        self.store, self.gangs, self.watch, self.provider = store, gangs, watch, provider
        self._elapsed, self._steady = elapsed, steady
        self._disobeyed: set[tuple[str, int]] = set()  # attempts whose agents do not end when they are told to
        self._called_off: set[tuple[str, int]] = set()  # attempts that end before all their agents were placed
        self._port_since: dict[tuple[str, int, int], float] = {}  # since when a master port was seen to be taken
        self._unfree: dict[tuple[str, int, int], bool] = {}  # is a node's newest word that something is left there?
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="certify")
        self._certifying: dict[tuple[str, int, int], Future[Record]] = {}
        self.silent: set[str] = set()  # ids of nodes whose lease ran out: nothing is placed there until they answer
        self._pings: dict[str, Future[bool]] = {}

    def certificates(self, row: JobRow, attempt: AttemptRow, views: list[NodeView]) -> list[Record] | None:
        """Every node's record of its end, once every node has one that leaves nothing alive; None before."""
        records = [self._of_node(row, attempt, view) for view in views]  # all of them: their clocks run side by side
        complete = [record for record in records if record is not None]
        return complete if len(complete) == len(views) else None

    def listen(self) -> None:
        """Ask the silent nodes for a sign of life, in the background: one that answers may be used again."""
        alive = {entry["id"] for entry in self.store.nodes() if entry["alive"]}
        self.silent &= alive  # one that Ray lists no more comes back under another id
        self._pings = {node: ping for node, ping in self._pings.items() if node in self.silent}
        for node in tuple(self.silent):
            ping = self._pings.get(node)
            if ping is None or (ping.done() and not ping.result()):
                self._pings[node] = self._pool.submit(self.gangs.answers, node)
            elif ping.done():
                self.silent.discard(node)

    def give_up(self, job: str, attempt: int) -> None:
        """Its agents were told to end and have had their time: those that answer and have not are killed, and what
        they left is swept. (One that waits for a disk that is gone answers for ever.)"""
        self._disobeyed.add((job, attempt))

    def call_off(self, job: str, attempt: int) -> None:
        """It has lost a node: agents that Ray has not placed yet need not come."""
        self._called_off.add((job, attempt))

    def forget(self, job: str, attempt: int, nodes: int) -> None:
        """The attempt has ended."""
        for marked in (self._disobeyed, self._called_off):
            marked.discard((job, attempt))
        self.watch.forget(job, attempt, nodes)
        for key in ((job, attempt, node_rank) for node_rank in range(nodes)):
            self._port_since.pop(key, None)
            self._certifying.pop(key, None)
            self._unfree.pop(key, None)

    def _of_node(self, row: JobRow, attempt: AttemptRow, view: NodeView) -> Record | None:
        if view.report is None:
            return self._of_the_silent(row, attempt, view)
        self.watch.heard((row.id, attempt.number, view.node_rank))
        self.silent.discard(attempt.nodes[view.node_rank]["id"])
        record: Record | None = view.report["ended"]
        if record is None:
            return self._swept(row, attempt, view) if (row.id, attempt.number) in self._disobeyed else None
        return record if self._is_free(row, view, record) else self._swept(row, attempt, view)

    def _of_the_silent(self, row: JobRow, attempt: AttemptRow, view: NodeView) -> Record | None:
        """The record of a node whose agent does not answer, or will never."""
        node = attempt.nodes[view.node_rank]
        known = {entry["id"]: entry for entry in self.store.nodes()}
        assert attempt.plan is not None
        key, lease_s = (row.id, attempt.number, view.node_rank), LaunchPlan.from_json(json.dumps(attempt.plan)).lease_s
        gone = self._confirmed_gone(attempt, key, node, known, lease_s)
        if gone is not None and self.watch.revoke_if_silent(key):
            return self._lost(row, view, node, gone)
        if view.answer == "dead" or self._never_placed(row, attempt, view):
            record = self._swept(row, attempt, view)
            if record is not None:
                return record
        if self._said_unfree(row, key) and self._alive(known.get(node["id"])):
            return None  # it is there, and says that it is not free: no lease proves more than that
        never_came = attempt.ready_at is None and self.gangs.register.renewed(key) is None
        if view.answer == "pending" and never_came and self._alive(known.get(node["id"])):
            return None  # Ray is still placing it
        if self.watch.is_over(key, lease_s):
            return self._lost(row, view, node, f"its lease of {lease_s:g} s ran out")
        if not self._alive(known.get(node["id"])):
            seen = "Ray calls it dead; waiting for its lease to end, or for the provider's word"
            self._once(row, "node_silent", {"host": node["host"], "seen": seen})
        return None

    def _confirmed_gone(
        self,
        attempt: AttemptRow,
        key: tuple[str, int, int],
        node: Mapping[str, Any],
        known: Mapping[str, Mapping[str, Any]],
        lease_s: float,
    ) -> str | None:
        """Why nothing on this host can live any more, by another word than Ray's; None if nobody says so.

        Ray may call a node alive for a quarter of a minute that is gone; our own heartbeats are missed sooner. Against
        a node that renews its lease nobody is believed.
        """
        since = self.watch.overdue_since(key, lease_s)
        if since is None:
            return None
        born = node.get("incarnation")
        for other in known.values():
            reborn, looked_at = other.get("incarnation"), (other.get("preflight") or {}).get("looked_at")
            same = (other["host"], other["address"]) == (node["host"], node["address"]) and other["id"] != node["id"]
            # Seen after the attempt began: Ray may still list a former life beside the one that has the attempt.
            newer = looked_at is not None and looked_at > attempt.granted_at
            if same and newer and other["alive"] and born and reborn and reborn != born:
                return "it is back, booted anew"
        gone = self.provider.is_gone(node["host"], node["address"], since=since)
        return "the provider says that it is gone" if gone else None

    @staticmethod
    def _alive(known: Mapping[str, Any] | None) -> bool:
        return known is not None and bool(known["alive"])

    def _never_placed(self, row: JobRow, attempt: AttemptRow, view: NodeView) -> bool:
        """Ray has not started the agent within the time to start, or the attempt ends before it has."""
        waited_s = self._elapsed.since(row.id, attempt.number, attempt.granted_at)
        called_off = row.job.stop_for is not None or (row.id, attempt.number) in self._called_off
        overdue = called_off or waited_s > row.spec.limits.start_timeout_s
        return view.answer == "pending" and overdue and attempt.ready_at is None and waited_s > _PLACING_S

    def _swept(self, row: JobRow, attempt: AttemptRow, view: NodeView) -> Record | None:
        """The record made by a sweep on the node itself, if anybody can get there; None until it leaves nothing."""
        assert attempt.plan is not None
        launch = LaunchPlan.from_json(json.dumps(attempt.plan))
        node = attempt.nodes[view.node_rank]
        known = {entry["id"]: entry for entry in self.store.nodes()}.get(node["id"])
        # First make sure that the agent is gone, and can renew nothing: what it left is then nobody's.
        self.gangs.kill_agent(row.id, attempt.number, view.node_rank)
        self.watch.revoke(row.id, attempt.number)
        if self._alive(known):
            record = self._in_background(row, view, self.gangs.certify, launch, view.node_rank, node["id"])
        elif _is_here(node):
            record = self._in_background(row, view, certify, launch.to_json(), view.node_rank)  # Ray was restarted here
        else:
            return None
        if record is None or not self._is_free(row, view, record):
            return None
        if record.get("unattended") and (row.id, attempt.number) in self._disobeyed:
            return {**record, "message": f"the agent on {node['host']} did not end when it was told to and was killed"}
        return record | self._why_dead(record, view)

    @staticmethod
    def _why_dead(record: Record, view: NodeView) -> Record:
        """Ray's word on an agent of which nobody else can tell why it died: killed for memory, say."""
        if not record.get("unattended") or view.answer != "dead" or not view.detail:
            return {}
        return {"message": f"{record['message']}: {view.detail[:_RAYS_WORD]}"}

    def _is_free(self, row: JobRow, view: NodeView, record: Record) -> bool:
        """Does this certificate leave nothing on the node? What it leaves is told once."""
        key = (row.id, row.job.attempt, view.node_rank)
        held = self._held(key, record)
        self._note_word(row, key, held)
        return not held

    def _note_word(self, row: JobRow, key: tuple[str, int, int], held: dict[str, Any]) -> None:
        """Keep the node's newest word, also for a control plane after this one."""
        before, self._unfree[key] = self._said_unfree(row, key), bool(held)
        if held:
            self._once(row, "teardown_incomplete", {"node": key[2], **held}, again=not before)
        elif before:
            self.store.log(row, "teardown_complete", {"node": key[2]})

    def _said_unfree(self, row: JobRow, key: tuple[str, int, int]) -> bool:
        """A control plane before this one may have heard it: then it is among the events."""
        if key not in self._unfree:
            words = [
                entry["action"]
                for entry in self.store.events(row.id)
                if entry["action"] in ("teardown_incomplete", "teardown_complete", "node_silent")
                and (entry["attempt"], entry["detail"].get("node")) == key[1:]
            ]
            self._unfree[key] = words[-1:] == ["teardown_incomplete"]
        return self._unfree[key]

    def _held(self, key: tuple[str, int, int], record: Record) -> dict[str, Any]:
        """What of the node is not released yet. A port alone holds nothing up for long: the sweep found no process of
        ours, so a stranger has it, and the next attempt takes another one. (When the record was made is told by the
        node's clock, which may be any.)"""
        held = left(record)
        if set(held) != {"port"}:
            return held
        since = self._port_since.setdefault(key, self._steady())
        return {} if self._steady() - since > _PORT_S else held

    def _in_background(
        self, row: JobRow, view: NodeView, make: Callable[..., Record], *arguments: Any
    ) -> Record | None:
        """The certificate once it is made; None while it is being made, or when nobody could (it is tried again)."""
        key = (row.id, row.job.attempt, view.node_rank)
        if key not in self._certifying:
            self._certifying[key] = self._pool.submit(make, *arguments)
        future = self._certifying[key]
        if not future.done():
            return None
        del self._certifying[key]
        try:
            return future.result()
        except ClusterUnreachable as error:
            _LOG.warning("action=certify job=%s attempt=%d: %s", row.id, row.job.attempt, error)
            if self._said_unfree(row, key):  # whoever does not answer says nothing
                self._unfree[key] = False
                self.store.log(row, "node_silent", {"node": view.node_rank, "seen": "it cannot be asked any more"})
            return None

    def _lost(self, row: JobRow, view: NodeView, node: Mapping[str, Any], why: str) -> Record:
        self._once(row, "node_lost", {"host": node["host"], "seen": why})
        self.silent.add(node["id"])
        return {"lost": node["host"], "why": why, "node_rank": view.node_rank}

    def _once(self, row: JobRow, action: str, detail: dict[str, Any], *, again: bool = False) -> None:
        """Log an event unless this attempt has logged it already, or `again`."""
        for entry in () if again else self.store.events(row.id):
            if (entry["action"], entry["attempt"], entry["detail"]) == (action, row.job.attempt, detail):
                return
        self.store.log(row, action, detail)


def _is_here(node: Mapping[str, str]) -> bool:
    """Is that node this very machine: its name, an address that is ours (names alone are not unique), and our process
    table (two containers may share a host's network)?"""
    if node["host"] != socket.gethostname() or node.get("incarnation") != incarnation():
        return False
    with socket.socket() as probe:
        try:
            probe.bind((node["address"], 0))
        except OSError:
            return False
    return True
