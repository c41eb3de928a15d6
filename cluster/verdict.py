"""Why an attempt ended, from its nodes' records: one table, no I/O. msrun's own exit code is never believed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.budgets import Cause
from jobs.contract import Exit

_BY_CODE = {
    int(Exit.CONFIG): Cause.CONFIG,
    int(Exit.INFRASTRUCTURE): Cause.INFRASTRUCTURE,
    int(Exit.NO_REQUEUE): Cause.NO_REQUEUE,
    int(Exit.DRAINED): Cause.PREEMPTED,
}
_GOOD = (int(Exit.DONE), int(Exit.DRAINED))
START_TIMEOUT = "start_timeout"  # why the control plane stops an attempt whose workers never reported
_LEASE = ("lease_over", "revoked")
_OURS = ("peer_fault", "peer_hangs", "agent_gone", *_LEASE)  # stops that are consequences, not causes


def judge(records: Sequence[dict[str, Any]], *, world_size: int, stop_for: Cause | None) -> tuple[Cause, str]:
    """The cause of an attempt's end and one sentence about it.

    Args:
        records: each node's record of the end (see `cluster.ending`); `{"lost": host, "why": proof}` for one that is
            confirmed dead.
        world_size: how many ranks there should have been.
        stop_for: why the control plane asked for the end, if it did.
    """
    workers = [o for record in records for o in record.get("outcomes", []) if o["rank"] >= 0]
    if len(workers) == world_size and all(o["code"] == Exit.DONE for o in workers):
        return Cause.DONE, ""
    final = _first([o for o in workers if o["code"] in (Exit.CONFIG, Exit.NO_REQUEUE)])
    if final is not None:
        return _BY_CODE[final["code"]], _say(final)
    late = [str(record["node_rank"]) for record in records if record.get("stop_why") == START_TIMEOUT]
    if late:
        return Cause.INFRASTRUCTURE, f"no worker reported within limits.start_timeout_s (nodes {', '.join(late)})"
    hung = _first([r["fault"] for r in records if (r.get("fault") or {}).get("hang")])
    if hung is not None and stop_for is None:
        return Cause.HANG, str(hung["hang"])
    bad = _first(_faults(records))
    if stop_for is not None:
        return stop_for, f"while draining: {_say(bad)}" if bad and stop_for is Cause.PREEMPTED else ""
    lost = [f"{record['lost']} ({record['why']})" for record in records if "lost" in record]
    if lost:
        return Cause.NODE_LOST, f"lost {', '.join(lost)}"
    over = [str(record["node_rank"]) for record in records if record.get("stop_why") in _LEASE]
    if over and bad is None:
        return (
            Cause.NODE_LOST,
            f"node {', '.join(over)} did not reach the Ray head for its whole lease and ended itself",
        )
    if bad is not None:
        if bad["rank"] < 0:
            return Cause.INFRASTRUCTURE, f"msrun's scheduler process ended first: {_say(bad)}"
        return _BY_CODE.get(bad["code"], Cause.CRASH), _say(bad)
    if len(workers) == world_size and all(o["code"] in _GOOD for o in workers):
        return Cause.PREEMPTED, "the workers were asked to stop by somebody else, and drained"
    return _without_outcomes(records)


def _faults(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outcome that each node saw fail first; what we killed afterwards says nothing."""
    found = []
    for record in records:
        fault = record.get("fault")
        if fault is None or record.get("stop_why") in _OURS:
            continue
        found += [o for o in record.get("outcomes", []) if o["rank"] == fault["rank"]]
    return found


def _first(outcomes: list[dict[str, Any]]) -> dict[str, Any] | None:
    return min(outcomes, key=lambda outcome: float(outcome["at"]), default=None)


def _say(outcome: dict[str, Any]) -> str:
    how = f"was killed by signal {outcome['signal']}" if outcome["signal"] else f"exited {outcome['code']}"
    reason = f": {outcome['reason']}" if outcome.get("reason") else ""
    return f"rank {outcome['rank']} {how}{reason}"


def _without_outcomes(records: Sequence[dict[str, Any]]) -> tuple[Cause, str]:
    """No rank told of its end: a node that could not be prepared, a killed supervisor or agent, msrun itself."""
    for record in records:
        if record.get("message"):
            code = (record.get("fault") or {}).get("code")
            return _BY_CODE.get(code or 0, Cause.INFRASTRUCTURE), str(record["message"])
    exits = sorted({str(record.get("msrun_exit")) for record in records})
    return Cause.INFRASTRUCTURE, f"msrun ended before its workers told how (exit {', '.join(exits)}): see msrun.log"
