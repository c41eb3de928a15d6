"""One active job: from what its nodes say to what the store knows, until every node has certified its end.

Not knowing is never failure: what ends an attempt is said in orchestrator.control.teardown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.gang import Gangs, NodeView
from cluster.lease import Watch
from cluster.node.ending import failed
from cluster.outcome.stops import PEER_FAULT, START_TIMEOUT
from cluster.outcome.verdict import each_rank, judge
from jobs.budgets import Cause
from jobs.manifest import parse_name
from jobs.states import AttemptEnded, Effect, State, StopRequested, WorkersReported
from orchestrator.control import observe
from orchestrator.control.elapsed import Elapsed
from orchestrator.control.provider import Provider
from orchestrator.control.teardown import Teardown
from orchestrator.store import AttemptRow, JobRow, Store

_EXITS = 64  # ranks whose ends the store keeps for each attempt, the first to end first
_FORCE_AGAIN_S = 10.0
_OBEYS_S = 60.0  # an agent that was told to end at once has by then: stacks, a sweep and the devices take half of it
_STOP_MARGIN_S = 15.0  # beyond the grace, before an agent that missed the first word is told again


class Following:
    """Follows active jobs, one call a tick; what it keeps beside the store may be lost without harm."""

    def __init__(
        self,
        store: Store,
        gangs: Gangs,
        *,
        provider: Provider,
        clock: Callable[[], float],
        steady: Callable[[], float],
    ) -> None:
        self.store, self.gangs, self.clock, self._steady = store, gangs, clock, steady
        self.elapsed = Elapsed(clock, steady)
        self.teardown = Teardown(
            store, gangs, Watch(gangs.register, steady), provider, elapsed=self.elapsed, steady=steady
        )
        self._stopping: dict[tuple[str, int], tuple[float, float]] = {}  # when force was used first, and last

    def follow(self, row: JobRow, views: list[NodeView]) -> None:
        """Write down what is seen of one attempt, end it when it has ended, hold it to its limits."""
        attempt = self.store.attempt(row.id, row.job.attempt)
        if attempt.plan is None:
            # Its launch was called off by a stop: nothing of it ever existed.
            empty = [{"node_rank": rank, "outcomes": []} for rank in range(row.spec.gang.nodes)]
            self._end(row, attempt, empty, observe.Progress())
            return
        seen = self._record_progress(row, attempt, views)
        if seen.heard:
            row = self._report_running(row, attempt)
        records = self.teardown.certificates(row, attempt, views)
        if records is not None:
            self._end(row, attempt, records, seen)
            return
        self._end_together(row, attempt, views)
        self._limits(row, attempt, seen)

    def _record_progress(self, row: JobRow, attempt: AttemptRow, views: list[NodeView]) -> observe.Progress:
        """Write down what the heartbeats say. What a dead agent cannot repeat is kept from the last time."""
        beats = {beat["rank"]: beat for beat in attempt.view.get("ranks", [])} | observe.heartbeats(views)
        seen = observe.progress(beats.values())
        started = [view.report["started"].get("at") for view in views if view.report and view.report.get("started")]
        values: dict[str, Any] = {
            "view": observe.picture(views, beats),
            "to_step": max(seen.step, attempt.to_step),
            "from_step": seen.from_step if seen.from_step is not None else attempt.from_step,
            "first_step_at": seen.first_step_at or attempt.first_step_at,
            "ready_at": attempt.ready_at or (max(started) if len(started) == row.spec.gang.nodes else None),
            "resumed": seen.resumed or attempt.resumed,
            "quarantined": seen.quarantined or attempt.quarantined,
            "seconds": seen.seconds or attempt.seconds,
        }
        if any(getattr(attempt, name) != value for name, value in values.items()):
            self.store.note_attempt(row.id, attempt.number, **values)
        if seen.quarantined and not attempt.quarantined:
            self.store.log(row, "checkpoint_quarantined", {"quarantined": seen.quarantined, "resumed": seen.resumed})
        if seen.resumed and not attempt.resumed:
            self.store.log(row, "resumed", seen.resumed)
        job_values: dict[str, Any] = {}
        if seen.checkpoint and seen.checkpoint != row.checkpoint:
            job_values["checkpoint"] = seen.checkpoint
            self.store.log(row, "checkpoint_committed", seen.checkpoint)
        if seen.metrics and seen.metrics != row.metrics:
            job_values["metrics"] = seen.metrics
        if seen.mlflow_run and row.mlflow_run is None:
            job_values["mlflow_run"] = seen.mlflow_run
        if job_values:
            self.store.note(row.id, **job_values)
        return seen

    def _report_running(self, row: JobRow, attempt: AttemptRow) -> JobRow:
        if row.state is not State.LAUNCHING:
            return row
        return self.store.apply(
            row, WorkersReported(attempt=attempt.number), now=self.clock(), action="workers_reported"
        )

    def _once(self, row: JobRow, action: str, detail: dict[str, Any]) -> None:
        """Log an event unless this attempt has logged it already."""
        for entry in self.store.events(row.id):
            if entry["action"] == action and entry["attempt"] == row.job.attempt:
                return
        self.store.log(row, action, detail)

    def _end(self, row: JobRow, attempt: AttemptRow, records: list[dict[str, Any]], seen: observe.Progress) -> None:
        hosts = [node["host"] for node in attempt.nodes]
        verdict = judge(records, world_size=row.spec.gang.world_size, stop_for=row.job.stop_for, hosts=hosts)
        picture = self.store.attempt(row.id, attempt.number).view
        exits = each_rank(records, world_size=row.spec.gang.world_size, hosts=hosts)
        told = {"end": verdict.as_json(), "exits": exits[:_EXITS], "num_exits": len(exits)}
        self.store.note_attempt(row.id, attempt.number, view={**picture, **told})
        row = self.store.get(row.id)
        start = (seen.resumed or attempt.resumed or {}).get("step", 0)
        mine = parse_name(row.checkpoint["manifest"]) if row.checkpoint else None
        progressed = mine is not None and mine[0] == attempt.number and mine[1] > start
        self.store.apply(
            row,
            AttemptEnded(attempt=attempt.number, cause=verdict.cause, progressed=progressed, detail=verdict.detail),
            now=self._ended_at(attempt, records),
            action="attempt_ended",
            detail={**verdict.as_json(), "to_step": max(seen.step, attempt.to_step)},
        )
        self._stopping.pop((row.id, attempt.number), None)
        self.teardown.forget(row.id, attempt.number, row.spec.gang.nodes)
        self.elapsed.forget(row.id, attempt.number)

    def _ended_at(self, attempt: AttemptRow, records: list[dict[str, Any]]) -> float:
        """When the last node ended: by its record, or by its last heartbeat where nobody was there to write one.

        The control plane may look much later, after a night in which it was down; and its clock may have jumped since
        the grant, which is not to count as time that the attempt ran.
        """
        beats = [float(beat["at"]) for beat in attempt.view.get("ranks", [])]
        told = [float(record["at"]) for record in records if "at" in record and not record.get("unattended")]
        now = attempt.granted_at + self.elapsed.since(attempt.job_id, attempt.number, attempt.granted_at)
        return min(now, max([attempt.granted_at, *(told or beats or [now])]))

    def _end_together(self, row: JobRow, attempt: AttemptRow, views: list[NodeView]) -> None:
        """A node that is gone or has failed ends the gang everywhere (agents tell each other too, if they can)."""
        lost = {attempt.nodes[v.node_rank]["id"] for v in views if v.report is None} & self.teardown.silent
        ends = [view.report["ended"] for view in views if view.report and view.report["ended"]]
        if lost:
            self.teardown.call_off(row.id, attempt.number)
        if lost or any(view.answer == "dead" for view in views) or any(map(failed, ends)):
            self._force_stop(row, attempt, PEER_FAULT)

    def _force_stop(self, row: JobRow, attempt: AttemptRow, why: str) -> None:
        key, now = (row.id, attempt.number), self._steady()
        first, last = self._stopping.get(key, (now, now - _FORCE_AGAIN_S))
        if now - first > _OBEYS_S:
            self.teardown.give_up(*key)
        if now - last >= _FORCE_AGAIN_S:
            self._stopping[key] = (first, now)
            self.gangs.stop(row.id, attempt.number, row.spec.gang.nodes, why, 0.0)

    def _limits(self, row: JobRow, attempt: AttemptRow, seen: observe.Progress) -> None:
        """Time limits: of starting, of draining (an agent that missed the first word), of running in all."""
        limits = row.spec.limits
        ran_s = self.elapsed.since(row.id, attempt.number, attempt.granted_at)
        if row.state is State.LAUNCHING and ran_s > limits.start_timeout_s:
            self._once(row, "start_timeout", {"seen": f"no worker has reported after {limits.start_timeout_s:g} s"})
            self._force_stop(row, attempt, START_TIMEOUT)
        told_at = self.store.effect_done_at(row.id, attempt.number, Effect.STOP)
        patience_s = limits.drain_grace_s + _STOP_MARGIN_S
        if told_at is not None and self.elapsed.since(row.id, attempt.number, told_at) > patience_s:
            self._force_stop(row, attempt, (row.job.stop_for or Cause.CANCELLED).value)
        if limits.wall_time_s is not None and row.job.stop_for is None:
            resumes = [e["attempt"] for e in self.store.events(row.id) if e["action"] == "resume_requested"]
            counted = [a for a in self.store.attempts(row.id) if max(resumes, default=0) < a.number < attempt.number]
            spent_s = ran_s + sum(max(0.0, (a.ended_at or a.granted_at) - a.granted_at) for a in counted)
            if spent_s > limits.wall_time_s:
                detail = f"ran {spent_s:.0f} s in all, the limit is {limits.wall_time_s:g} s"
                stop = StopRequested(cause=Cause.TIME_LIMIT, detail=detail)
                now = self.clock()
                self.store.apply(self.store.get(row.id), stop, now=now, action="time_limit", detail={"seen": detail})
