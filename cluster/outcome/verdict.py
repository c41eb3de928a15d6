"""Why an attempt ended, from its nodes' records: no I/O. msrun's own exit code is never believed alone.

Which process is to blame is decided here; what its end means stands in one table, `cluster.outcome.exits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.outcome.exits import Kind, Meaning, explain
from cluster.outcome.stops import AGENT_GONE, LEASE_OVER, PEER_FAULT, PEER_HANGS, REVOKED, START_TIMEOUT
from jobs.budgets import Cause
from jobs.contract import Exit

_GOOD = (int(Exit.DONE), int(Exit.DRAINED))
_NO_FAULT = (None, *_GOOD)
_LEASE = (LEASE_OVER, REVOKED)
_OURS = (PEER_FAULT, PEER_HANGS, AGENT_GONE, *_LEASE)  # stops that are consequences, not causes
_NO_WORD = "left no word of its own"
_ENDED_BY = {
    PEER_FAULT: "was ended for a fault elsewhere in the gang",
    PEER_HANGS: "was ended for a hang elsewhere in the gang",
    AGENT_GONE: "was ended when its node's agent had died",
    LEASE_OVER: "was ended when its node's lease had run out",
    REVOKED: "was ended when its node's lease was taken back",
    START_TIMEOUT: "was ended for not having reported in time",
}
_KINDS = {
    Cause.DONE: Kind.DONE,
    Cause.PREEMPTED: Kind.PREEMPTED,
    Cause.CANCELLED: Kind.CANCELLED,
    Cause.TIME_LIMIT: Kind.TIME_LIMIT,
    Cause.CONFIG: Kind.CONFIGURATION,
    Cause.NO_REQUEUE: Kind.NO_REQUEUE,
    Cause.NODE_LOST: Kind.HOST_LOST,
    Cause.INFRASTRUCTURE: Kind.INFRASTRUCTURE,
    Cause.CRASH: Kind.PROGRAM,
    Cause.HANG: Kind.HANG,
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why an attempt ended: the budget it costs, its kind, and one sentence; who failed first, where and when."""

    cause: Cause
    kind: Kind
    detail: str = ""
    hint: str = ""
    rank: int | None = None  # -1 for msrun's scheduler process
    host: str | None = None
    at: float | None = None  # Unix time by that host's clock

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "cause": self.cause.value, "kind": self.kind.value}


@dataclass(frozen=True)
class _End:
    """One process's end, where it was, and what it means."""

    outcome: dict[str, Any]
    host: str | None
    meaning: Meaning

    def sentence(self) -> str:
        outcome, says, reason = self.outcome, self.meaning.says, self.outcome.get("reason")
        who = f"rank {outcome['rank']}" if outcome["rank"] >= 0 else "msrun's scheduler process"
        how = f"was killed by signal {outcome['signal']}" if outcome["signal"] else f"exited {outcome['code']}"
        where = f" on {self.host}" if self.host else ""
        return f"{who}{where} {how}{f' ({says})' if says else ''}{f': {reason}' if reason else ''}"

    def verdict(self) -> Verdict:
        rule = self.meaning.rule
        return Verdict(
            cause=rule.cause,
            kind=rule.kind,
            detail=self.sentence(),
            hint=rule.hint,
            rank=self.outcome["rank"],
            host=self.host,
            at=float(self.outcome["at"]),
        )


def judge(
    records: Sequence[dict[str, Any]], *, world_size: int, stop_for: Cause | None, hosts: Sequence[str] = ()
) -> Verdict:
    """Why the attempt ended.

    Args:
        records: each node's record of the end (see `cluster.node.ending`); `{"lost": host, "why": proof}` for one
            that is confirmed dead.
        world_size: how many ranks there should have been.
        stop_for: why the control plane asked for the end, if it did.
        hosts: the nodes' names, by node rank.
    """
    workers = [o for record in records for o in record.get("outcomes", []) if o["rank"] >= 0]
    if len(workers) == world_size and all(o["code"] == Exit.DONE for o in workers):
        return _plain(Cause.DONE)
    final = _first(_ends(records, hosts, only=lambda o: o["rank"] >= 0 and o["code"] in (Exit.CONFIG, Exit.NO_REQUEUE)))
    if final is not None:
        return final.verdict()
    late = [_name(record, hosts) for record in records if record.get("stop_why") == START_TIMEOUT]
    if late:
        return _plain(Cause.INFRASTRUCTURE, f"no worker reported within limits.start_timeout_s ({', '.join(late)})")
    lost = [record for record in records if "lost" in record]
    over = [record for record in records if record.get("stop_why") in _LEASE]
    gone = [record for record in records if record.get("stop_why") == AGENT_GONE]
    hung = [record for record in records if (record.get("fault") or {}).get("hang")]
    if hung and stop_for is None and not (lost or over or gone):  # else the others waited for that node's ranks
        return _hang(min(hung, key=lambda record: float(record["fault"]["at"])), hosts)
    bad = _to_blame(_faults(records, hosts))
    if stop_for is not None:
        told = f"while draining: {bad.sentence()}" if bad and stop_for is Cause.PREEMPTED else ""
        return _plain(stop_for, told)
    if lost:
        told = ", ".join(f"{record['lost']} ({record['why']})" for record in lost)
        return _plain(Cause.NODE_LOST, f"lost {told}", lost[0]["lost"])
    if over and bad is None:
        names = [_name(record, hosts) for record in over]
        told = f"{', '.join(names)} did not reach the Ray head for its whole lease and ended itself"
        return _plain(Cause.NODE_LOST, told, names[0])
    if bad is not None:
        return bad.verdict()
    if len(workers) == world_size and all(o["code"] in _GOOD for o in workers):
        return _plain(Cause.PREEMPTED, "the workers were asked to stop by somebody else, and drained")
    return _without_outcomes(records, hosts)


def each_rank(
    records: Sequence[dict[str, Any]], *, world_size: int, hosts: Sequence[str]
) -> list[dict[str, int | float | str | None]]:
    """How every rank ended: rank, host, code, signal, at (Unix time by its host's clock) and says, a sentence.

    Those that ended by themselves first, in that order; then those of which no shim was left to tell.
    """
    ends = _ends(records, hosts, only=lambda o: o["rank"] >= 0)
    told: list[dict[str, int | float | str | None]] = [
        {
            "rank": end.outcome["rank"],
            "host": end.host,
            "code": end.outcome["code"],
            "signal": end.outcome["signal"],
            "at": float(end.outcome["at"]),
            "says": end.sentence(),
        }
        for end in sorted(ends, key=lambda end: float(end.outcome["at"]))
    ]
    known, per_node = {end["rank"] for end in told}, world_size // len(records)
    for record in sorted(records, key=lambda record: int(record["node_rank"])):
        first = int(record["node_rank"]) * per_node
        for rank in range(first, first + per_node):
            if rank not in known:
                how = (
                    "is lost with its host"
                    if "lost" in record
                    else _ENDED_BY.get(str(record.get("stop_why")), _NO_WORD)
                )
                said = f"rank {rank} on {_name(record, hosts)} {how}"
                host = _host(record, hosts)
                told.append({"rank": rank, "host": host, "code": None, "signal": None, "at": None, "says": said})
    return told


def _plain(cause: Cause, detail: str = "", host: str | None = None) -> Verdict:
    return Verdict(cause=cause, kind=_KINDS[cause], detail=detail, host=host)


def _hang(record: dict[str, Any], hosts: Sequence[str]) -> Verdict:
    fault, who = record["fault"], f"rank {record['fault']['rank']}"
    there = f"{who} on {_name(record, hosts)}"
    return Verdict(
        cause=Cause.HANG,
        kind=Kind.HANG,
        detail=str(fault["hang"]).replace(who, there, 1),
        hint="every rank's stacks lie in the attempt's folder",
        rank=fault["rank"],
        host=_host(record, hosts),
        at=float(fault["at"]),
    )


def _host(record: dict[str, Any], hosts: Sequence[str]) -> str | None:
    rank = record.get("node_rank")
    return hosts[rank] if rank is not None and rank < len(hosts) else None


def _name(record: dict[str, Any], hosts: Sequence[str]) -> str:
    return _host(record, hosts) or f"node {record.get('node_rank')}"


def _ends(records: Sequence[dict[str, Any]], hosts: Sequence[str], *, only: Any) -> list[_End]:
    return [
        _End(outcome, _host(record, hosts), explain(outcome))
        for record in records
        for outcome in record.get("outcomes", [])
        if only(outcome)
    ]


def _faults(records: Sequence[dict[str, Any]], hosts: Sequence[str]) -> list[_End]:
    """The end that each node saw fail first, and those that failed with a code of their own: the first one seen may be
    an echo. What we killed afterwards says nothing."""
    found: list[_End] = []
    for record in records:
        fault = record.get("fault") or {}
        if not fault.get("hang") and record.get("stop_why") not in _OURS:
            rank = fault.get("rank")
            found += _ends([record], hosts, only=lambda o, rank=rank: o["rank"] == rank or o["code"] not in _NO_FAULT)
    return found


def _to_blame(faults: list[_End]) -> _End | None:
    """The first to fail, but one that only lost its peer is not blamed while another has a reason of its own."""
    return _first([end for end in faults if not end.meaning.rule.follows]) or _first(faults)


def _first(ends: list[_End]) -> _End | None:
    return min(ends, key=lambda end: float(end.outcome["at"]), default=None)


def _without_outcomes(records: Sequence[dict[str, Any]], hosts: Sequence[str]) -> Verdict:
    """No rank told of its end: a node that could not be prepared, a killed supervisor or agent, msrun itself."""
    for record in records:
        if record.get("message"):
            code = (record.get("fault") or {}).get("code")
            rule = explain({"rank": -1, "code": code, "signal": None}).rule
            cause = rule.cause if rule.code is not None else Cause.INFRASTRUCTURE
            return _plain(cause, str(record["message"]), _host(record, hosts))
    for record in records:
        if record.get("oom"):
            outcome = {"rank": -1, "code": None, "signal": 9, "oom": record["oom"], "at": record["at"]}
            end = _End(outcome, _host(record, hosts), explain(outcome))
            if end.meaning.rule.kind is Kind.OUT_OF_MEMORY:
                said = f"msrun on {_name(record, hosts)} ended before its workers told how ({end.meaning.says})"
                return Verdict(
                    cause=Cause.CRASH, kind=Kind.OUT_OF_MEMORY, detail=said, hint=end.meaning.rule.hint, host=end.host
                )
    for record in records:
        if record.get("stop_why") == AGENT_GONE:
            name = _name(record, hosts)
            return _plain(Cause.INFRASTRUCTURE, f"the agent on {name} died, and its supervisor ended the workers", name)
    exits = ", ".join(f"{_name(record, hosts)}: {record.get('msrun_exit')}" for record in records)
    return _plain(Cause.INFRASTRUCTURE, f"msrun ended before its workers told how (exit of {exits}): see msrun.log")
