"""The reconcile loop: observe, plan, commit, act.

One bad job is recorded and skipped. A failed observation ends the tick: it never reads as "everything died".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from cluster.gang import Gangs, NodeView
from jobs.budgets import Cause
from jobs.errors import ClusterUnreachable, RetryableError, RexError
from jobs.states import BackoffElapsed, Effect, GangGranted, State, StopRequested
from orchestrator.control.census import Census
from orchestrator.control.effects import Effects
from orchestrator.control.fitness import Standing
from orchestrator.control.following import Following
from orchestrator.control.plan import Capacity, Demand, Grant, Holding, LeftOut, Preempt, Snapshot, Wait, Waiting, plan
from orchestrator.control.provider import Provider
from orchestrator.store import JobRow, Stale, Store
from orchestrator.store.flags import PAUSED, READY

_LOG = logging.getLogger("rexctl.loop")


class Loop:
    """One control plane's view of the world and what it does about it."""

    def __init__(
        self,
        store: Store,
        gangs: Gangs,
        effects: Effects,
        census: Census,
        *,
        provider: Provider | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is for what people see, `steady` for what is measured: it does not jump."""
        self.store, self.gangs, self.effects, self.census, self.clock = store, gangs, effects, census, clock
        self.following = Following(store, gangs, provider=provider or Provider(None), clock=clock, steady=steady)

    def tick(self) -> bool:
        """One round; is no job under way? ClusterUnreachable and RetryableError mean that nothing was concluded."""
        active = self.store.jobs(active=True)
        # Asked before the agents are: one that is being created while we look is missing, and that says nothing.
        launching = {(e.job_id, e.attempt) for e in self.store.pending_effects() if e.effect is Effect.LAUNCH}
        idle = not active
        active = [row for row in active if (row.id, row.job.attempt) not in launching]
        views = self.look(active)
        self.census.step()
        for row in active:
            self._guarded(row, self.following.follow, views[row.id, row.job.attempt])
        self.following.teardown.listen()
        for row in self.store.jobs(active=False):
            idle = False
            self._guarded(row, self._wake)
        self.commit(plan(self.snapshot()))
        self.effects.step()
        self.store.set_flag(READY, self.clock())
        return idle

    def _guarded(self, row: JobRow, step: Callable[..., None], *arguments: Any) -> None:
        try:
            step(row, *arguments)
        except Stale:
            return  # somebody else moved the job: the next tick sees it as it is now
        except ClusterUnreachable as error:  # about this job's nodes; the others are not to wait for it
            _LOG.warning("action=skip_job job=%s attempt=%d: %s", row.id, row.job.attempt, error)
        except RetryableError:
            raise
        except Exception:
            _LOG.exception("action=skip_job job=%s attempt=%d", row.id, row.job.attempt)

    # -- observe

    def look(self, active: list[JobRow]) -> dict[tuple[str, int], list[NodeView]]:
        """See the nodes and every active attempt; marks jobs unreachable, and says so, when that fails."""
        try:
            self.store.see_nodes([asdict(node) for node in self.gangs.nodes()], now=self.clock())
            views = self.gangs.poll((row.id, row.job.attempt, row.spec.gang.nodes) for row in active)
        except ClusterUnreachable:
            for row in active:
                if row.unreachable_since is None:
                    self.store.note(row.id, unreachable_since=self.clock())
                    self.store.log(row, "unreachable", {"seen": "Ray does not answer"})
            raise
        for row in active:
            ready = self.store.attempt(row.id, row.job.attempt).ready_at is not None
            silent_answers = ("unreachable", "pending") if ready else ("unreachable",)
            silent = any(view.answer in silent_answers for view in views[row.id, row.job.attempt])
            if silent and row.unreachable_since is None:
                self.store.note(row.id, unreachable_since=self.clock())
            elif not silent and row.unreachable_since is not None:
                self.store.note(row.id, unreachable_since=None)
        return views

    # -- waiting jobs

    def _wake(self, row: JobRow) -> None:
        self.census.doubt(row)
        wait_s = 0.0 if row.job.not_before is None else row.job.not_before - self.clock()
        due = not 0.0 < wait_s <= row.job.retry.backoff_max_s  # longer than ever granted: the clock was set back
        if row.state is State.BACKOFF and due:
            self.store.apply(row, BackoffElapsed(), now=self.clock(), action="backoff_elapsed")

    def snapshot(self) -> Snapshot:
        """What `plan` decides on."""
        now = self.clock()
        verdicts = self.census.verdicts(self.following.teardown.silent)
        nodes, left_out = [], []
        for node in self.store.nodes():
            verdict, seen = verdicts[node["id"]], {name: node[name] for name in ("id", "cpus", "npus", "address")}
            if verdict.standing is Standing.USABLE:
                nodes.append(Capacity(**seen))
            elif verdict.standing is not Standing.LOST:
                left_out.append(LeftOut(**seen, reason=verdict.reason))
        waiting, holding = [], []
        for row in [*self.store.jobs(active=False), *self.store.jobs(active=True)]:
            demand = Demand.of(row.spec.gang)
            if row.state is State.QUEUED:
                waiting.append(
                    Waiting(job_id=row.id, priority=row.spec.priority, submitted_at=row.submitted_at, demand=demand)
                )
            elif row.state.active:
                attempt = self.store.attempt(row.id, row.job.attempt)
                saved_at = attempt.first_step_at or attempt.granted_at
                holding.append(
                    Holding(
                        job_id=row.id,
                        priority=row.spec.priority,
                        demand=demand,
                        node_ids=tuple(node["id"] for node in attempt.nodes),
                        stopping=row.job.stop_for is not None,
                        unsaved_s=now - saved_at,
                    )
                )
        return Snapshot(
            nodes=tuple(nodes),
            waiting=tuple(waiting),
            holding=tuple(holding),
            paused=bool(self.store.flag(PAUSED)),
            left_out=tuple(left_out),
        )

    # -- commit

    def commit(self, decisions: list[Grant | Preempt | Wait]) -> None:
        nodes = {node["id"]: node for node in self.store.nodes()}
        for decision in decisions:
            try:
                self._commit_one(decision, nodes)
            except Stale:
                continue
            except RexError as error:
                if isinstance(error, RetryableError):
                    raise
                _LOG.warning("action=skip_decision job=%s: %s", decision.job_id, error)

    def _commit_one(self, decision: Grant | Preempt | Wait, nodes: dict[str, Any]) -> None:
        row, now = self.store.get(decision.job_id), self.clock()
        if isinstance(decision, Grant):
            chosen = [_place(nodes[i]) for i in decision.node_ids]
            hosts = [node["host"] for node in chosen]
            self.store.apply(row, GangGranted(), now=now, action="gang_granted", detail={"hosts": hosts}, nodes=chosen)
            self.store.note(row.id, waiting="")
        elif isinstance(decision, Preempt):
            detail = {"for": decision.for_job, "reason": decision.reason, "checkpoint": row.checkpoint}
            stop = StopRequested(cause=Cause.PREEMPTED, detail=f"for {decision.for_job}")
            self.store.apply(row, stop, now=now, action="preempt_requested", detail=detail)
        elif row.waiting != decision.reason:
            self.store.note(row.id, waiting=decision.reason)


def _place(node: Mapping[str, Any]) -> dict[str, str]:
    """What an attempt keeps of a node that it runs on."""
    seen = node["preflight"] or {}
    return {
        **{key: node[key] for key in ("id", "host", "address")},
        "incarnation": node["incarnation"] or "",
        "code_root": seen.get("code_root", ""),
    }
