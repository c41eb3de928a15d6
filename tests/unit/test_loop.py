"""The loop against a cluster that lies: late answers, silence, vanished nodes. The store is real, the clock is ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.gang import Gangs, Node, NodeView
from cluster.launch import LaunchPlan
from cluster.lease import MARGIN_S, Lease
from jobs.budgets import Cause
from jobs.contract import Heartbeat
from jobs.errors import ClusterUnreachable, TrackingUnavailable
from jobs.spec import build_spec
from jobs.states import Effect, State, StopRequested
from orchestrator.control.census import Census
from orchestrator.control.effects import Effects
from orchestrator.control.loop import Loop
from orchestrator.control.provider import Provider
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
        said = {"fault": fault, "message": "swept", "survivors": self.survivors, **self.also}
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
        effects = cast(Effects, NoEffects())
        census = Census(self.store, cast(Gangs, self.gangs), WANTED, clock=self.clock)
        self.loop = Loop(self.store, cast(Gangs, self.gangs), effects, census, clock=self.clock, steady=self.steady)

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
            nodes=1,
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
        for _ in range(200):
            self.loop.tick()
            if wanted():
                return
        raise AssertionError("it never came to that")

    def state(self, job: str = "j") -> State:
        return self.store.get(job).state


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.engine.dispose()


def report(*, ended: dict[str, Any] | None = None, **beat: Any) -> NodeView:
    ranks = {"0": asdict(Heartbeat(rank=0, **beat))} if beat else {}
    started = {"at": 1001.0, "cpus": [0], "pid": 1} if beat else {}
    body = {"host": "h1", "directory": "/d", "phase": "running", "started": started, "ranks": ranks, "ended": ended}
    return NodeView(node_rank=0, answer="report", report=body)


def silent(answer: str) -> NodeView:
    return NodeView(node_rank=0, answer=answer)


def ended(code: int = 0, **more: Any) -> dict[str, Any]:
    outcome = {"rank": 0, "code": code, "signal": None, "reason": "", "at": 1.0, "heartbeat": None}
    fault = {"rank": 0} if code else None
    return {"node_rank": 0, "outcomes": [outcome], "fault": fault, "survivors": [], "stop_why": None, **more}


def test_agent_that_is_missing_while_it_is_being_created_says_nothing(world: World) -> None:
    """The poll saw no agent, the launch finished during the poll: the old view must not end the new attempt."""
    world.submit()
    world.loop.tick()
    world.gangs.views["j"] = [silent("dead")]
    world.gangs.during_poll = world.finish_launch
    world.loop.tick()
    assert world.state() is State.LAUNCHING and world.gangs.certified == []


def test_cluster_that_does_not_answer_changes_no_state(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=5, phase="training")]
    world.loop.tick()
    world.gangs.unreachable = True
    for _ in range(5):
        world.clock.now += 100_000
        with pytest.raises(ClusterUnreachable):
            world.loop.tick()
    row = world.store.get("j")
    assert (row.state, row.job.attempt) == (State.RUNNING, 1) and row.unreachable_since is not None
    world.gangs.unreachable = False
    world.loop.tick()
    assert world.store.get("j").unreachable_since is None


@pytest.mark.parametrize("answer", ["pending", "unreachable"])
def test_agent_that_does_not_answer_but_keeps_its_lease_is_unreachable_for_ever(world: World, answer: str) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=5, phase="training")]
    world.loop.tick()
    world.gangs.views["j"] = [silent(answer)]
    lease = Lease(world.gangs.register, ("j", 1, 0), LEASE_S)
    for _ in range(20):
        world.clock.now += LEASE_S
        lease.renew()
        world.loop.tick()
        row = world.store.get("j")
        assert row.state is State.RUNNING and row.unreachable_since is not None
    assert world.gangs.killed == [] and world.gangs.register.revoked == set()


@pytest.mark.parametrize("answer", ["pending", "unreachable"])
def test_agent_that_does_not_answer_is_lost_once_its_lease_is_over_and_not_before(world: World, answer: str) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=5, phase="training")]
    world.loop.tick()
    Lease(world.gangs.register, ("j", 1, 0), LEASE_S).renew()
    world.gangs.views["j"] = [silent(answer)]
    world.loop.tick()
    world.clock.now += LEASE_S + MARGIN_S
    world.loop.tick()
    assert world.state() is State.RUNNING
    world.clock.now += 1
    world.loop.tick()
    assert world.store.attempt("j", 1).cause == Cause.NODE_LOST.value
    assert "lease" in world.store.attempt("j", 1).detail
    world.clock.now += 60
    world.loop.tick()
    assert world.state() is State.QUEUED, "nothing is placed on a node that does not answer"
    world.gangs.answering = True
    world.tick_until(lambda: world.state() is State.LAUNCHING)


def test_dead_agent_ends_the_attempt_only_with_a_certificate_of_its_node(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [silent("dead")]
    world.tick_until(lambda: world.state() is State.BACKOFF)
    assert world.gangs.certified == ["j"]


def gone_from_ray(world: World) -> None:
    """A job whose node Ray no longer lists; another one is there."""
    world.launched()
    world.gangs.views["j"] = [silent("dead")]
    world.gangs.seen_nodes = [Node(id="n2", host="h2", address="10.0.0.2", cpus=2.0, npus=0.0, alive=True)]
    world.loop.tick()


def test_lost_node_holds_the_next_attempt_back_until_its_lease_is_over(world: World) -> None:
    gone_from_ray(world)
    world.clock.now += LEASE_S + MARGIN_S
    world.loop.tick()
    assert world.state() is State.LAUNCHING and world.gangs.certified == []
    world.clock.now += 1
    world.loop.tick()
    assert world.state() is State.BACKOFF
    assert world.store.attempt("j", 1).cause == Cause.NODE_LOST.value


def test_node_that_ray_calls_dead_but_that_lives_is_revoked_and_waited_for(world: World) -> None:
    """Its raylet was stopped, say: the agent goes on renewing until it reads the revocation."""
    gone_from_ray(world)
    lease = Lease(world.gangs.register, ("j", 1, 0), LEASE_S)
    assert lease.renew() is None, "revoked as soon as Ray had said so"
    world.clock.now += LEASE_S + MARGIN_S + 1
    world.loop.tick()
    assert world.state() is State.LAUNCHING, "the lease has moved since: the count begins again"


def test_provider_that_says_gone_ends_the_wait_at_once(world: World) -> None:
    world.loop.following.teardown.provider = cast(Provider, ScriptedProvider({"h1"}))
    gone_from_ray(world)
    assert world.state() is State.LAUNCHING, "it may just have renewed"
    world.clock.now += LEASE_S / 5
    world.loop.tick()
    assert world.state() is State.BACKOFF
    assert "provider" in world.store.attempt("j", 1).detail
    assert ("j", 1) in world.gangs.register.revoked


def test_provider_is_believed_before_ray_once_a_renewal_is_missed_and_never_against_one(world: World) -> None:
    world.loop.following.teardown.provider = cast(Provider, ScriptedProvider({"h1"}))
    world.launched()
    lease = Lease(world.gangs.register, ("j", 1, 0), LEASE_S)
    world.gangs.views["j"] = [silent("unreachable")]
    for _ in range(5):
        assert lease.renew() is not None
        world.loop.tick()
        world.clock.now += lease.every_s
        world.loop.tick()
        assert world.state() is State.LAUNCHING, "whoever renews its lease is there"
    world.clock.now += lease.every_s
    world.loop.tick()
    assert world.state() is State.BACKOFF and "provider" in world.store.attempt("j", 1).detail


def test_renewal_between_the_providers_word_and_its_use_saves_the_attempt_for_its_lease(world: World) -> None:
    lying = ScriptedProvider({"h1"})
    world.loop.following.teardown.provider = cast(Provider, lying)
    world.launched()
    lease = Lease(world.gangs.register, ("j", 1, 0), LEASE_S)
    assert lease.renew() is not None
    world.gangs.views["j"] = [silent("unreachable")]
    world.loop.tick()
    began = world.clock()
    world.clock.now += LEASE_S / 5
    ask = lying.is_gone

    def renewed_meanwhile(host: str, address: str, *, since: float) -> bool:
        lease.renew()
        return ask(host, address, since=since)

    lying.is_gone = renewed_meanwhile  # type: ignore[method-assign]
    world.loop.tick()
    assert world.state() is State.LAUNCHING and lying.since == [began]
    assert lease.renew() is None, "and it ends by itself, for it was revoked"


def test_host_that_is_back_booted_anew_ends_the_wait_for_its_lease(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [silent("unreachable")]
    world.loop.tick()
    again = Node(id="n1b", host="h1", address="10.0.0.1", cpus=2.0, npus=0.0, alive=True)
    world.gangs.seen_nodes = [*world.gangs.seen_nodes, again]
    world.clock.now += LEASE_S / 5
    world.loop.tick()
    (seen,) = [node for node in world.store.nodes() if node["id"] == "n1b"]
    world.store.note_node(
        "n1b", incarnation="boot/2", preflight={**(seen["preflight"] or {}), "looked_at": world.clock()}
    )
    world.loop.tick()
    assert world.state() is State.BACKOFF and "booted anew" in world.store.attempt("j", 1).detail


def test_former_life_that_ray_still_lists_is_no_rebirth_of_the_host_that_has_the_attempt(world: World) -> None:
    old, new = world.gangs.seen_nodes[0], Node(id="n1b", host="h1", address="10.0.0.1", cpus=2.0, npus=0.0, alive=True)
    world.loop.tick()
    world.gangs.seen_nodes = [old, new]
    world.clock.now += 5
    world.loop.tick()
    (facts_of_old,) = [node for node in world.store.nodes() if node["id"] == "n1"]
    assert facts_of_old["incarnation"]
    seen = {**facts_of_old["preflight"], "looked_at": world.clock()}
    world.store.note_node("n1b", incarnation="boot/2", preflight=seen, problem="")
    world.clock.now += 1
    world.launched()
    assert [node["id"] for node in world.store.attempt("j", 1).nodes] == ["n1b"]
    world.gangs.views["j"] = [silent("unreachable")]
    for _ in range(4):
        world.loop.tick()
        world.clock.now += LEASE_S / 5
    assert world.state() is State.LAUNCHING, "its lease decides"


def test_process_that_survives_its_attempt_holds_the_next_one_back(world: World) -> None:
    world.launched()
    world.gangs.survivors = [4711]
    world.gangs.views["j"] = [report(ended=ended(1, survivors=[4711]))]
    world.tick_until(lambda: len(world.gangs.certified) > 2)
    assert world.state() is State.LAUNCHING
    assert [e["action"] for e in world.store.events("j")].count("teardown_incomplete") == 1
    world.gangs.survivors = []
    world.tick_until(lambda: world.state() is State.BACKOFF)


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
def test_master_port_that_a_stranger_took_holds_the_next_attempt_up_for_half_a_minute_only(
    world: World, ahead_s: float
) -> None:
    """Whatever the node's clock says, by which its record is dated."""
    world.launched()
    world.gangs.also = {"port_free": False, "at": world.clock() + ahead_s}
    world.gangs.views["j"] = [report(ended=ended(1, **world.gangs.also))]
    world.tick_until(lambda: len(world.gangs.certified) > 2)
    assert world.store.attempt("j", 1).ended_at is None
    world.clock.now += 31
    world.tick_until(lambda: world.store.attempt("j", 1).ended_at is not None)


def test_backoff_ends_soon_although_the_clock_was_set_back_an_hour(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(ended=ended(1))]
    world.tick_until(lambda: world.state() is State.BACKOFF)
    world.loop.tick()
    assert world.state() is State.BACKOFF, "its time has not come"
    world.clock.now -= 3600
    world.loop.tick()
    assert world.state() is not State.BACKOFF


def test_effect_is_tried_again_soon_although_the_clock_was_set_back_an_hour(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    effects, ran = Effects(world.store, nothing, nothing, nothing, code=""), []
    monkeypatch.setattr(effects, "_run", ran.append)
    world.submit()
    world.loop.tick()
    (launch,) = world.store.pending_effects("j")
    world.store.effect_failed(launch, "no answer", retry_at=time.time() + 20)
    effects.step()
    assert ran == [] and effects._running == {}, "its time has not come"
    world.store.effect_failed(launch, "no answer", retry_at=time.time() + 3600)
    effects.step()
    effects._running["j"].result(30)
    assert [effect.effect for effect in ran] == [Effect.LAUNCH]


def test_process_for_the_next_agent_is_asked_for_at_the_end_of_a_job(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=1, phase="training", first_step_at=1002.0)]
    world.loop.tick()
    assert world.gangs.spares == [], "ranks need every CPU"
    world.gangs.views["j"] = [report(ended=ended())]
    world.tick_until(lambda: world.state() is State.SUCCEEDED)
    world.done("j", Effect.RELEASE)
    world.gangs.spare_error = ClusterUnreachable("Ray is gone")
    assert world.closed_by_effects() == ["j"], "MLflow does not wait for Ray"
    assert world.gangs.spares == [("j", ("n1",))]


def test_process_for_the_next_agent_is_asked_for_once_however_long_mlflow_is_down(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(ended=ended())]
    world.tick_until(lambda: world.state() is State.SUCCEEDED)
    world.done("j", Effect.RELEASE)
    tracking = ClosedRuns(down=True)
    effects = Effects(world.store, cast(Gangs, world.gangs), tracking, cast(Home, None), code="")
    for _ in range(3):
        (close,) = world.store.pending_effects("j")
        effects._run(close)
    tracking.down = False
    assert world.closed_by_effects() == ["j"] and len(world.gangs.spares) == 1


def test_job_that_was_cancelled_before_it_had_a_node_is_closed(world: World) -> None:
    world.submit()
    world.store.request("j", StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    assert world.closed_by_effects() == ["j"] and world.gangs.spares == []


def test_grace_counts_from_when_the_workers_were_told(world: World) -> None:
    world.launched()
    world.gangs.views["j"] = [report(step=5, phase="training")]
    world.store.request("j", StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    world.clock.now += 3600
    world.loop.tick()
    assert world.gangs.stopped == [], "the stop itself is still pending: no force before it"


def test_job_cancelled_before_its_launch_ends_without_one(world: World) -> None:
    world.submit()
    world.loop.tick()
    world.store.request("j", StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    world.done("j", Effect.LAUNCH)  # as effects do when a stop came first: nothing was started
    world.loop.tick()
    assert world.state() is State.CANCELLED


def test_workers_that_never_report_are_stopped_and_count_as_infrastructure(world: World) -> None:
    world.launched(limits={"start_timeout_s": 60})
    world.gangs.views["j"] = [report()]
    world.clock.now += 61
    world.loop.tick()
    assert world.gangs.stopped == [("j", "start_timeout", 0.0)]
    world.gangs.views["j"] = [report(ended=ended(75, stop_why="start_timeout"))]
    world.loop.tick()
    assert world.store.attempt("j", 1).cause == Cause.INFRASTRUCTURE.value


def test_running_time_before_a_resume_does_not_count_against_the_limit(world: World) -> None:
    from jobs.states import ResumeRequested

    world.launched(limits={"wall_time_s": 100})
    world.gangs.views["j"] = [report(step=1, phase="training")]
    world.clock.now += 101
    world.loop.tick()
    assert world.store.get("j").job.stop_for is Cause.TIME_LIMIT
    world.gangs.views["j"] = [report(ended=ended(75, at=world.clock()))]
    world.loop.tick()
    assert world.state() is State.FAILED
    world.store.request("j", ResumeRequested(), action="resume_requested")
    world.loop.tick()
    world.finish_launch()
    world.gangs.views["j"] = [report(step=2, phase="training")]
    world.clock.now += 50
    world.loop.tick()
    assert world.store.get("j").job.stop_for is None


@pytest.mark.parametrize("by_s", [7200.0, -7200.0])
def test_wall_clock_that_jumps_on_the_control_planes_host_ends_no_healthy_job(world: World, by_s: float) -> None:
    world.launched("slow", limits={"start_timeout_s": 60})
    world.gangs.views["slow"] = [report()]
    world.loop.tick()
    world.jump(by_s)
    world.loop.tick()
    assert world.gangs.stopped == [], "it has had no time to start"
    world.gangs.views["slow"] = [report(step=1, phase="training")]
    world.loop.tick()
    assert world.state("slow") is State.RUNNING
    world.jump(by_s)
    world.clock.now += 50
    world.loop.tick()
    world.store.request("slow", StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    world.done("slow", Effect.STOP)
    world.loop.tick()
    world.jump(by_s)
    world.loop.tick()
    assert world.gangs.stopped == [], "its grace is not over"
    world.clock.now += 3600
    world.loop.tick()
    assert world.gangs.stopped == [("slow", "cancelled", 0.0)], "and a limit still is one"


@pytest.mark.parametrize("by_s", [7200.0, -7200.0])
def test_limit_of_running_time_counts_no_jump_of_the_wall_clock(world: World, by_s: float) -> None:
    world.launched(limits={"wall_time_s": 100})
    world.gangs.views["j"] = [report(step=1, phase="training")]
    world.loop.tick()
    world.jump(by_s)
    world.clock.now += 90
    world.loop.tick()
    assert world.store.get("j").job.stop_for is None
    world.clock.now += 11
    world.loop.tick()
    assert world.store.get("j").job.stop_for is Cause.TIME_LIMIT


def test_bad_job_does_not_keep_the_others_from_going_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.gangs.seen_nodes[0] = Node(id="n1", host="h1", address="10.0.0.1", cpus=4.0, npus=0.0, alive=True)
    world.submit("bad")
    world.launched("good")
    world.finish_launch("bad")
    world.gangs.views = {"good": [report(step=3, phase="training")], "bad": [report(step=3, phase="training")]}
    follow = world.loop.following.follow

    def broken(row: JobRow, views: list[NodeView]) -> None:
        if row.id == "bad":
            raise RuntimeError("a bug")
        follow(row, views)

    monkeypatch.setattr(world.loop.following, "follow", broken)
    world.loop.tick()
    assert (world.state("good"), world.state("bad")) == (State.RUNNING, State.LAUNCHING)


def test_lost_checkpoint_of_a_dead_rank_zero_still_counts_as_progress(world: World) -> None:
    world.launched()
    checkpoint = {"manifest": "manifests/000001-000000020.json", "step": 20, "sha256": "0"}
    resumed = {"manifest": None, "step": 0}
    world.gangs.views["j"] = [report(step=25, phase="training", checkpoint=checkpoint, resumed=resumed)]
    world.loop.tick()
    world.gangs.views["j"] = [report(ended=ended(1))]
    world.loop.tick()
    row = world.store.get("j")
    assert row.checkpoint == checkpoint and row.job.stalled_in_row == 0
    assert world.store.attempt("j", 1).to_step == 25
