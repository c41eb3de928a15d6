"""The scheduler: from a snapshot to decisions. Pure; the snapshot carries everything, and somebody else commits.

Strict order by priority, then by time of submission. A job that has to wait keeps what is free from those behind it
(no starvation); one that could not run even on an empty cluster waits without keeping anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from jobs.spec import Gang


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a gang needs on each of `nodes` nodes of as many hosts."""

    nodes: int
    cpus: float
    npus: float

    @classmethod
    def of(cls, gang: Gang) -> Demand:
        return cls(nodes=gang.nodes, cpus=float(gang.cpus_per_node), npus=float(gang.npus_per_node))

    def __str__(self) -> str:
        devices = f" and {self.npus:g} NPUs" if self.npus else ""
        return f"{self.nodes} node{'s' if self.nodes > 1 else ''} with {self.cpus:g} CPUs{devices} each"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """A node as the cluster has it. Those with the same `address` are one host; without one it is a host of its own."""

    id: str
    cpus: float
    npus: float
    address: str = ""

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs" + (f" and {self.npus:g} NPUs" if self.npus else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A node that is there but may not be used; `reason` is a sentence that names it."""

    id: str
    cpus: float
    npus: float
    reason: str
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    job_id: str
    priority: int
    submitted_at: float
    demand: Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A job that holds nodes. `unsaved_s`: seconds since its newest checkpoint or its start: what a preemption that
    cannot drain would cost."""

    job_id: str
    priority: int
    demand: Demand
    node_ids: tuple[str, ...]
    stopping: bool
    unsaved_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    nodes: tuple[Capacity, ...]  # usable ones only
    waiting: tuple[Waiting, ...]
    holding: tuple[Holding, ...]
    paused: bool = False
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    job_id: str
    node_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempt:
    job_id: str
    for_job: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    job_id: str
    reason: str


Decision = Grant | Preempt | Wait


class _Room(NamedTuple):
    """What a node has to give, and the host that it is on."""

    cpus: float
    npus: float
    host: str


_Free = dict[str, _Room]
_NAMED = 3  # nodes that are left out, in a sentence about a job; `rexctl nodes` names them all


def plan(snapshot: Snapshot) -> list[Decision]:
    """What to do now. At most one decision for each waiting job, plus the preemptions it asks for."""
    free, others = _rooms(snapshot.nodes), _rooms(snapshot.left_out)
    everything, others_free = dict(free), dict(others)
    for holder in snapshot.holding:
        _take(free, holder.node_ids, holder.demand)
        _take(others_free, holder.node_ids, holder.demand)
    decisions: list[Decision] = []
    leaving = {holder.job_id for holder in snapshot.holding if holder.stopping}
    ahead: Waiting | None = None
    for job in sorted(snapshot.waiting, key=lambda w: (-w.priority, w.submitted_at, w.job_id)):
        if snapshot.paused:
            decisions.append(Wait(job_id=job.job_id, reason="the control plane is being shut down"))
        elif fit(everything, job.demand) is None:
            blame = _blame({**everything, **others}, job.demand, snapshot.left_out)
            decisions.append(Wait(job_id=job.job_id, reason=_too_large(job.demand, snapshot.nodes) + blame))
        elif ahead is not None:
            reason = f"behind {ahead.job_id} (priority {ahead.priority}), which waits for the same nodes"
            decisions.append(Wait(job_id=job.job_id, reason=reason))
        elif (chosen := fit(free, job.demand)) is not None:
            _take(free, chosen, job.demand)
            decisions.append(Grant(job_id=job.job_id, node_ids=chosen))
        else:
            ahead = job
            preempted, wait = _make_room(job, free, snapshot.holding, leaving)
            blame = _blame({**free, **others_free}, job.demand, snapshot.left_out)
            decisions += [*preempted, replace(wait, reason=wait.reason + blame)]
    return decisions


def fit(free: _Free, demand: Demand) -> tuple[str, ...] | None:
    """Nodes for the gang, the fullest fitting ones first (so that large holes stay large); None if it does not fit.

    At most one of each host: msrun starts its scheduler wherever the master's address is local, so on two nodes of the
    master's host there would be two, and a node that ends sweeps its host for the attempt's token.
    """
    fitting = [node for node, room in free.items() if room.cpus >= demand.cpus and room.npus >= demand.npus]
    fitting.sort(key=lambda node: (free[node].npus, free[node].cpus, node))
    of_host: dict[str, str] = {}
    for node in fitting:
        of_host.setdefault(free[node].host, node)
    return tuple(of_host.values())[: demand.nodes] if len(of_host) >= demand.nodes else None


def _rooms(nodes: Sequence[Capacity] | Sequence[LeftOut]) -> _Free:
    return {node.id: _Room(cpus=node.cpus, npus=node.npus, host=node.address or node.id) for node in nodes}


def _take(free: _Free, node_ids: Sequence[str], demand: Demand, sign: int = -1) -> None:
    for node in node_ids:
        if node in free:  # a lost node still belongs to its gang, but has nothing to give
            room = free[node]
            free[node] = room._replace(cpus=room.cpus + sign * demand.cpus, npus=room.npus + sign * demand.npus)


def _make_room(job: Waiting, free: _Free, holding: Sequence[Holding], leaving: set[str]) -> tuple[list[Preempt], Wait]:
    """Preempt the fewest cheapest jobs of lower priority that make room, if any do; say what is waited for."""
    room = dict(free)
    for holder in holding:
        if holder.job_id in leaving:
            _take(room, holder.node_ids, holder.demand, +1)
    if fit(room, job.demand) is not None:
        who = ", ".join(sorted(leaving))
        return [], Wait(job_id=job.job_id, reason=f"needs {job.demand}; waits for {who} to drain")
    victims: list[Holding] = []
    candidates = [h for h in holding if h.priority < job.priority and h.job_id not in leaving]
    for victim in sorted(candidates, key=lambda h: (h.priority, h.unsaved_s, h.job_id)):
        _take(room, victim.node_ids, victim.demand, +1)
        victims.append(victim)
        if fit(room, job.demand) is not None:
            break
    else:
        busy = ", ".join(f"{h.job_id} (priority {h.priority})" for h in holding) or "other work on the cluster"
        return [], Wait(job_id=job.job_id, reason=f"needs {job.demand}; {busy} holds them, at no lower priority")
    victims = _needed(job, room, victims)
    leaving |= {victim.job_id for victim in victims}
    reason = f"{job.job_id} (priority {job.priority}) needs {job.demand}"
    who = ", ".join(victim.job_id for victim in victims)
    preempted = [Preempt(job_id=victim.job_id, for_job=job.job_id, reason=reason) for victim in victims]
    return preempted, Wait(job_id=job.job_id, reason=f"needs {job.demand}; preempts {who}")


def _needed(job: Waiting, room: _Free, victims: list[Holding]) -> list[Holding]:
    """Spare those whose nodes turned out not to be needed, the dearest first."""
    kept = list(victims)
    for victim in reversed(victims):
        _take(room, victim.node_ids, victim.demand, -1)
        if fit(room, job.demand) is not None:
            kept.remove(victim)
        else:
            _take(room, victim.node_ids, victim.demand, +1)
    return kept


def _blame(with_them: _Free, demand: Demand, left_out: Sequence[LeftOut]) -> str:
    """Names the nodes that are left out, if it is for want of them that a job waits."""
    if not left_out or fit(with_them, demand) is None:
        return ""
    shown = [node.reason for node in left_out[:_NAMED]]
    more = [f"and {len(left_out) - _NAMED} more"] if len(left_out) > _NAMED else []
    return f"; left out: {'; '.join([*shown, *more])}"


def _too_large(demand: Demand, nodes: Sequence[Capacity]) -> str:
    have = "; ".join(sorted({f"{sum(str(n) == str(m) for n in nodes)} x {m}" for m in nodes})) or "no node"
    hosts = len({node.address or node.id for node in nodes})
    on_hosts = (
        f" on {hosts} host{'s' * (hosts != 1)}, of which a gang takes one node each" if hosts < len(nodes) else ""
    )
    return f"needs {demand}; the cluster has {have}{on_hosts}"
