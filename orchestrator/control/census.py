"""The census: every node of the cluster is looked at before it is used, and again now and then.

The looking is done by tasks on the nodes; the loop asks and collects and never waits. A node whose packages of ours
are not the control plane's gets these brought (`cluster.preflight.code`). What was seen is in the store; what is
kept beside it may be lost without harm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.budgets import Cause
from jobs.errors import ClusterUnreachable
from jobs.states import State
from orchestrator.control.fitness import Standing, Verdict, Wanted, problem, record, survey

if TYPE_CHECKING:
    from cluster.gang import Gangs
    from orchestrator.store import JobRow, Store

_LOG = logging.getLogger("rexctl.nodes")
_EVERY_S = 300.0
_AGAIN_S = 10.0  # for a node with a problem, or without an answer
_PATIENCE_S = 10.0  # a node that has not answered by then is said not to


@dataclass(slots=True)
class _Question:
    """A look at a node that is under way."""

    asked_at: float
    facts: Future[dict[str, Any]]
    answered_at: float = 0.0
    code: Future[str] | None = None  # our packages on their way there
    said: bool = False  # that there is no answer


class Census:
    """Asks, collects, keeps in the store."""

    def __init__(self, store: Store, gangs: Gangs, wanted: Wanted, *, clock: Callable[[], float] = time.time) -> None:
        self.store, self.gangs, self.wanted, self.clock = store, gangs, wanted, clock
        self._questions: dict[str, _Question] = {}
        self._asked_at: dict[str, float] = {}
        self._doubted: dict[str, float] = {}  # node id -> answers from before then do not count
        self._noticed: dict[str, int] = {}  # job id -> the newest attempt whose end was looked at

    def step(self) -> None:
        """Ask who is due, collect what has come. Never blocks."""
        rows = {row["id"]: row for row in self.store.nodes() if row["alive"]}
        memories: list[dict[str, Any]] = [self._questions, self._asked_at, self._doubted]
        for memory in memories:
            for node_id in memory.keys() - rows.keys():
                del memory[node_id]
        for node_id, row in rows.items():
            if node_id not in self._questions and self._is_due(row):
                self._asked_at[node_id] = now = self.clock()
                facts = self.gangs.preflight(node_id, self.wanted.work_root)
                self._questions[node_id] = _Question(asked_at=now, facts=facts)
            if node_id in self._questions:
                self._collect(row, self._questions[node_id])

    def doubt(self, row: JobRow) -> None:
        """A job whose last attempt ended for want of infrastructure: its nodes are looked at again before their next
        use."""
        if row.state is not State.BACKOFF:
            return
        if self._noticed.get(row.id) == row.job.attempt:
            return
        self._noticed[row.id] = row.job.attempt
        attempt = self.store.attempt(row.id, row.job.attempt)
        if attempt.cause == Cause.INFRASTRUCTURE.value:
            self._doubted.update({node["id"]: self.clock() for node in attempt.nodes})

    def verdicts(self, silent: Collection[str] = ()) -> dict[str, Verdict]:
        """The verdict on every node, by id; `silent` ones do not answer for a reason that somebody else has seen."""
        rows = {row["id"]: row for row in self.store.nodes()}
        found = survey(rows.values(), now=self.clock())
        for node_id, row in rows.items():
            if found[node_id].standing is Standing.LOST:
                continue
            if node_id in silent:
                reason = f"{row['host']} does not answer"
            elif self._is_outdated(row):
                reason = f"{row['host']} is being looked at again"
            else:
                continue
            found[node_id] = Verdict(standing=Standing.UNKNOWN, reason=reason)
        return found

    def _is_outdated(self, row: Mapping[str, Any]) -> bool:
        """Was it looked at before something changed: what is wanted, or a failure that it may have had a part in?"""
        seen = row["preflight"] or {}
        if seen.get("looked_at") is None:
            return False  # there is nothing to be outdated
        return bool(seen["wanted"] != self.wanted.signature or seen["looked_at"] < self._doubted.get(row["id"], 0.0))

    def _is_due(self, row: Mapping[str, Any]) -> bool:
        seen = row["preflight"] or {}
        looked_at, asked_at = seen.get("looked_at"), self._asked_at.get(row["id"])
        if asked_at is None and (looked_at is None or self._is_outdated(row)):
            return True
        hurry = looked_at is None or row["problem"] or seen.get("unanswered") or self._is_outdated(row)
        last = max(asked_at or 0.0, looked_at or 0.0)
        if self._doubted.get(row["id"], 0.0) > last:
            return True
        return not 0.0 <= self.clock() - last < (_AGAIN_S if hurry else _EVERY_S)  # also when the clock was set back

    def _collect(self, row: Mapping[str, Any], question: _Question) -> None:
        """Take what has come, go on to the next part, or say that nothing comes."""
        try:
            if question.facts.done() and question.code is None:
                facts, question.answered_at = question.facts.result(), self.clock()
                if facts["code"] != self.wanted.code.digest and not problem(facts, self.wanted):
                    _LOG.info("action=bring_code host=%s has=%s", row["host"], facts["code"][:12] or "none")
                    question.code = self.gangs.bring_code(row["id"], self.wanted.code, self.wanted.work_root)
                else:
                    self._keep(row, question, code_root="")
            if question.code is not None and question.code.done():
                self._keep(row, question, code_root=question.code.result())
        except ClusterUnreachable as error:
            del self._questions[row["id"]]
            self._say_unanswered(row, str(error))
            return
        if self.clock() - question.asked_at > _PATIENCE_S and not question.said and row["id"] in self._questions:
            question.said = True  # the question stays: a task that hangs there is not to get company
            self._say_unanswered(row, f"no answer within {_PATIENCE_S:.0f} s")

    def _keep(self, row: Mapping[str, Any], question: _Question, *, code_root: str) -> None:
        del self._questions[row["id"]]
        facts = question.facts.result()
        kept = record(
            facts, self.wanted, asked_at=question.asked_at, answered_at=question.answered_at, code_root=code_root
        )
        found = problem(facts, self.wanted)
        if found != row["problem"]:
            _LOG.warning("action=%s %s", "leave_out" if found else "use_again", found or row["host"])
        self.store.note_node(row["id"], incarnation=facts["incarnation"], preflight=kept, problem=found)

    def _say_unanswered(self, row: Mapping[str, Any], why: str) -> None:
        """Not knowing is no verdict: what was seen before goes on to count, for a while."""
        _LOG.warning("action=preflight host=%s: %s", row["host"], why)
        self.store.note_node(row["id"], preflight={**(row["preflight"] or {}), "unanswered": why})


def nodes_view(store: Store, *, now: float) -> list[dict[str, Any]]:
    """Every node as `rexctl nodes` shows it."""
    jobs: dict[str, list[str]] = {}
    for job in store.jobs(active=True):
        for node in store.attempt(job.id, job.job.attempt).nodes:
            jobs.setdefault(node["id"], []).append(job.id)
    rows = list(store.nodes())
    verdicts = survey(rows, now=now)
    return [
        {
            **{name: row[name] for name in ("id", "host", "address", "cpus", "npus", "incarnation")},
            "state": verdicts[row["id"]].standing.value,
            "problem": verdicts[row["id"]].reason,
            "jobs": jobs.get(row["id"], []),
            "preflight": row["preflight"],
        }
        for row in rows
    ]
