"""A cluster that says what the test wrote down, late, wrong or not at all, below the real loop and a real store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from cluster.gang import Gangs, Node, NodeView
from cluster.launch import LaunchPlan
from jobs.contract import Heartbeat
from jobs.errors import ClusterUnreachable, TrackingUnavailable
from jobs.spec import build_spec
from jobs.states import Effect, State
from orchestrator.control.census import Census
from orchestrator.control.effects import Effects
from orchestrator.control.loop import Loop
from orchestrator.settings import Home
from orchestrator.store import JobRow, Store
from tests.support.leases import Register
from tests.support.nodes import WANTED, facts

LEASE_S = 30.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class ScriptedGangs:
    """Says what the test wrote down, and remembers what it was asked to do."""

    def __init__(self) -> None:
        self.views: dict[str, list[NodeView]] = {}
        self.answering = False
        self.seen_nodes = [Node(id="n1", host="h1", address="10.0.0.1", cpus=2.0, npus=0.0, alive=True)]
        self.unreachable = False
        self.stopped: list[tuple[str, str, float]] = []
        self.killed: list[str] = []
        self.certified: list[str] = []
        self.survivors: list[int] = []
        self.also: dict[str, Any] = {}  # what else a sweep finds
        self.register = Register()
        self.launches: list[LaunchPlan] = []
        self.spares: list[tuple[str, tuple[str, ...]]] = []
        self.spare_error: ClusterUnreachable | None = None
        self.during_poll: Callable[[], None] = lambda: None

    def nodes(self) -> list[Node]:
        if self.unreachable:
            raise ClusterUnreachable("no answer")
        return self.seen_nodes

    def poll(self, attempts: Iterable[tuple[str, int, int]]) -> dict[tuple[str, int], list[NodeView]]:
        views = {(job, number): self.views.get(job, []) for job, number, _ in attempts}
        self.during_poll()
        return views

    def stop(self, job: str, attempt: int, nodes: int, why: str, grace_s: float) -> None:
        self.stopped.append((job, why, grace_s))

    def launch(self, plan: LaunchPlan, node_ids: tuple[str, ...]) -> None:
        self.launches.append(plan)

    def answers(self, node_id: str) -> bool:
        return self.answering

    def keep_spare(self, plan: LaunchPlan, node_ids: tuple[str, ...]) -> None:
        self.spares.append((plan.job, node_ids))
        if self.spare_error is not None:
            raise self.spare_error

    def kill_agent(self, job: str, attempt: int, node_rank: int) -> None:
        self.killed.append(job)

    def preflight(self, node_id: str, work_root: str) -> Future[dict[str, Any]]:
        answer: Future[dict[str, Any]] = Future()
        answer.set_result(facts(host="h1"))
        return answer

    def certify(self, plan: LaunchPlan, node_rank: int, node_id: str) -> dict[str, Any]:
        assert plan.job in self.killed, "nobody may be swept away whose agent could still start something"
        self.certified.append(plan.job)
        fault = {"rank": None, "code": None}
        said = {"fault": fault, "message": "swept", "unattended": True, "survivors": self.survivors, **self.also}
        return {"node_rank": node_rank, "outcomes": [], **said}


class ScriptedProvider:
    def __init__(self, gone: set[str]) -> None:
        self.gone, self.since = gone, list[float]()

    def is_gone(self, host: str, address: str, *, since: float) -> bool:
        self.since.append(since)
        return host in self.gone


class NoEffects:
    """Leaves the pending effects to the test."""

    def step(self) -> None:
        return None


class ClosedRuns:
    """An MLflow that takes everything."""

    uri = "none"

    def __init__(self, *, down: bool = False) -> None:
        self.closed, self.down = list[str](), down

    def ensure_run(self, row: JobRow) -> str:
        raise AssertionError("nothing is launched here")

    def close(self, row: JobRow) -> None:
        if self.down:
            raise TrackingUnavailable("it is down")
        self.closed.append(row.id)


class World:
    def __init__(self, folder: Path) -> None:
        self.clock, self.gangs = Clock(), ScriptedGangs()
        self.jumped_s = 0.0
        self.store = Store(f"sqlite:///{folder / 'store.db'}")
        self.store.migrate()
        self.loop = self._new_loop()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.engine.dispose()

    def _new_loop(self) -> Loop:
        effects = cast(Effects, NoEffects())
        census = Census(self.store, cast(Gangs, self.gangs), WANTED, clock=self.clock)
        return Loop(self.store, cast(Gangs, self.gangs), effects, census, clock=self.clock, steady=self.steady)

    def restart(self) -> None:
        """Another control plane: it knows what the store tells, and nothing else."""
        self.loop = self._new_loop()

    def steady(self) -> float:
        """Does not jump with the wall clock."""
        return self.clock.now - self.jumped_s

    def jump(self, by_s: float) -> None:
        self.jumped_s += by_s
        self.clock.now += by_s

    def submit(self, job: str = "j", **changes: Any) -> JobRow:
        spec = build_spec({"name": "j", "program": {"module": "m"}, **changes})
        self.store.submit(job, spec, store_uri="file:///o", init_from=None, now=self.clock())
        return self.store.get(job)

    def launched(self, job: str = "j", **changes: Any) -> JobRow:
        """A job whose first attempt was launched."""
        self.submit(job, **changes)
        self.loop.tick()
        self.finish_launch(job)
        return self.store.get(job)

    def finish_launch(self, job: str = "j") -> None:
        row = self.store.get(job)
        attempt = self.store.attempt(job, row.job.attempt)
        plan = LaunchPlan(
            job=job,
            attempt=attempt.number,
            token=attempt.token,
            nodes=row.spec.gang.nodes,
            workers_per_node=1,
            cpus_per_worker=1,
            npus_per_node=0,
            program=("module", "m"),
            work_root="/none",
            lease_s=LEASE_S,
        )
        self.store.note_attempt(job, attempt.number, plan=asdict(plan))
        self.done(job, Effect.LAUNCH)

    def done(self, job: str, kind: Effect) -> None:
        for effect in self.store.pending_effects(job):
            if effect.effect is kind:
                self.store.effect_done(effect)

    def closed_by_effects(self, job: str = "j") -> list[str]:
        """Do what is pending, which is to close the job's tracking; what was closed."""
        tracking = ClosedRuns()
        effects = Effects(self.store, cast(Gangs, self.gangs), tracking, cast(Home, None), code="")
        (close,) = self.store.pending_effects(job)
        effects._run(close)
        assert self.store.pending_effects(job) == []
        return tracking.closed

    def tick_until(self, wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60  # certificates come from threads
        while time.monotonic() < deadline:
            self.loop.tick()
            if wanted():
                return
            time.sleep(0.001)
        raise AssertionError("it never came to that")

    def state(self, job: str = "j") -> State:
        return self.store.get(job).state


def report(*, ended: dict[str, Any] | None = None, **beat: Any) -> NodeView:
    ranks = {"0": asdict(Heartbeat(rank=0, **beat))} if beat else {}
    started = {"at": 1001.0, "cpus": [0], "pid": 1} if beat else {}
    body = {"host": "h1", "directory": "/d", "phase": "running", "started": started, "ranks": ranks, "ended": ended}
    return NodeView(node_rank=0, answer="report", report=body)


def silent(answer: str, node_rank: int = 0) -> NodeView:
    return NodeView(node_rank=node_rank, answer=answer)


def ended(code: int = 0, **more: Any) -> dict[str, Any]:
    outcome = {"rank": 0, "code": code, "signal": None, "reason": "", "at": 1.0, "heartbeat": None}
    fault = {"rank": 0} if code else None
    return {"node_rank": 0, "outcomes": [outcome], "fault": fault, "survivors": [], "stop_why": None, **more}
