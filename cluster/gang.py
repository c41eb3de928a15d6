"""Gangs on Ray: place all nodes of an attempt or none, reach their agents, let them go.

A gang is a detached placement group with one bundle a node, each pinned to the node that the scheduler chose, and a
detached named agent in each bundle. Everything is found again by name, so a restarted control plane goes on where the
last one stopped, and doing a thing twice does it once.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayError,
)
from ray.remote_function import RemoteFunction
from ray.util import get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.launch import LaunchPlan
from cluster.node.agent import NAMESPACE, Agent, agent_name
from cluster.node.certify import certify
from cluster.preflight import code, facts
from cluster.register import HeadRegister, translated
from jobs import ascend
from jobs.errors import ClusterUnreachable

_POLL_S = 2.0
_ASK_AGAIN_S = 10.0  # for an answer that got lost on the way

for _module in (ascend, facts, code):  # what they hold is to run on nodes that have an older one of them, or none
    ray.cloudpickle.register_pickle_by_value(_module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node as Ray knows it. `alive` false is Ray's word, which is no proof."""

    id: str
    host: str
    address: str
    cpus: float
    npus: float
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What is known of one node of an attempt.

    answer: "report" (see report), "pending" (its agent was never reached: Ray is still placing it), "unreachable"
    (does not answer now, which proves nothing), "dead" (Ray says that the agent ended).
    """

    node_rank: int
    answer: str
    report: dict[str, Any] | None = None
    detail: str = ""


def _call_fault(what: str, *arguments: Any) -> Any:
    from cluster.chaos import faults

    return getattr(faults, what)(*arguments)


class Gangs:
    """The connection to one Ray cluster."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.register = HeadRegister()
        self._agents: dict[tuple[str, int, int], Any] = {}
        self._unanswered: dict[tuple[str, int, int], tuple[Any, float]] = {}  # a poll under way, and since when

    @translated
    def connect(self) -> None:
        """Connect, once in a process and from its main thread; ClusterUnreachable if the cluster does not answer."""
        # Ray has no switch for it: for each node that dies its driver prints some forty lines of that node's log on our
        # standard output, whatever `log_to_driver` says. What is known of a node's end is told by events and records.
        ray._private.worker.listen_error_messages = lambda worker, threads_stopped: None
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=self.address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except ConnectionError as error:  # what Ray says of a wrong token, too
            raise ClusterUnreachable(
                f"Ray at {self.address} does not let us in: {error}",
                hint="if it is up, it may ask for a token: RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH count where rexctl up "
                "is called",
            ) from error
        finally:
            # Ray puts its own there, which prints stacks and aborts the process three seconds later, whatever it was
            # about to put in order.
            signal.signal(signal.SIGTERM, on_sigterm)

    @translated
    def nodes(self) -> list[Node]:
        """Every node that Ray has known, dead ones included; a cluster without any node is one that did not answer."""
        found = [
            Node(
                id=entry["NodeID"],
                host=entry["NodeManagerHostname"],
                address=entry["NodeManagerAddress"],
                cpus=entry["Resources"].get("CPU", 0.0),
                npus=entry["Resources"].get("NPU", 0.0),
                alive=entry["Alive"],
            )
            for entry in ray.nodes()
        ]
        if not found:
            raise ClusterUnreachable("Ray lists no node at all", hint="its head may just be starting")
        return found

    @translated
    def launch(self, plan: LaunchPlan, node_ids: tuple[str, ...]) -> None:
        """Ask Ray for the gang and its agents; returns before they are there. Idempotent."""
        group_name = f"gang/{plan.job}/{plan.attempt}"
        cpus = plan.workers_per_node * plan.cpus_per_worker
        resources = {"NPU": float(plan.npus_per_node)} if plan.npus_per_node else {}
        try:
            group = get_placement_group(group_name)
        except ValueError:
            group = placement_group(
                [{"CPU": float(cpus), **resources}] * plan.nodes,
                strategy="STRICT_SPREAD",
                name=group_name,
                lifetime="detached",
                bundle_label_selector=[{"ray.io/node-id": node_id} for node_id in node_ids],
            )
        for node_rank in range(plan.nodes):
            actor = _remote(Agent).options(
                name=agent_name(plan.job, plan.attempt, node_rank),
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=cpus,
                resources=resources,
                max_restarts=0,
                max_concurrency=4,
                runtime_env=_with_code(plan, node_rank),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node_rank),
            )
            self._agents[plan.job, plan.attempt, node_rank] = actor.remote(plan.to_json(), node_rank)

    def _agent(self, job: str, attempt: int, node_rank: int) -> Any | None:
        """The agent's handle; None if Ray has none of that name."""
        key = (job, attempt, node_rank)
        if key not in self._agents:
            try:
                self._agents[key] = ray.get_actor(agent_name(*key), namespace=NAMESPACE)
            except ValueError:
                return None
        return self._agents[key]

    @translated
    def poll(self, attempts: Iterable[tuple[str, int, int]]) -> dict[tuple[str, int], list[NodeView]]:
        """What every node of every given (job, attempt, number of nodes) says, asked all at once.

        Who did not answer the last time is neither waited for again, which would hold up all others' jobs, nor asked
        again at once, which would leave it as many questions as there were ticks.
        """
        views: dict[tuple[str, int], list[NodeView]] = {}
        asked: dict[Any, tuple[str, int, int]] = {}
        earlier, self._unanswered = self._unanswered, {}
        now = time.monotonic()
        for job, attempt, nodes in attempts:
            views[job, attempt] = []
            for node_rank in range(nodes):
                actor = self._agent(job, attempt, node_rank)
                if actor is None:
                    views[job, attempt].append(NodeView(node_rank=node_rank, answer="dead", detail="no such agent"))
                    continue
                key = (job, attempt, node_rank)
                reference, since = earlier.get(key, (None, -math.inf))
                if now - since > _ASK_AGAIN_S:
                    reference, since = actor.poll.remote(), now
                asked[reference] = key
                self._unanswered[key] = (reference, since)
        fresh = [reference for reference, since in self._unanswered.values() if since == now]
        if fresh:
            ray.wait(fresh, num_returns=len(fresh), timeout=_POLL_S)
        for reference, key in asked.items():
            view = self._view(reference, key[2])
            if view.answer != "pending":
                del self._unanswered[key]
            views[key[:2]].append(view)
        return views

    @staticmethod
    def _view(reference: Any, node_rank: int) -> NodeView:
        try:
            return NodeView(node_rank=node_rank, answer="report", report=ray.get(reference, timeout=0))
        except GetTimeoutError:
            return NodeView(node_rank=node_rank, answer="pending")
        except ActorUnavailableError as error:
            return NodeView(node_rank=node_rank, answer="unreachable", detail=str(error))
        # Of an actor that Ray's memory monitor killed it says so with an error that is no RayActorError.
        except (RayActorError, OutOfMemoryError, ActorPlacementGroupRemoved, ActorUnschedulableError) as error:
            return NodeView(node_rank=node_rank, answer="dead", detail=" ".join(str(error).split()))
        except RayError as error:  # about this one agent only; what it means is not known
            return NodeView(node_rank=node_rank, answer="unreachable", detail=" ".join(str(error).split()))

    @translated
    def stop(self, job: str, attempt: int, nodes: int, why: str, grace_s: float) -> None:
        """Ask every node's agent to drain and end its workers; returns before they have."""
        for node_rank in range(nodes):
            actor = self._agent(job, attempt, node_rank)
            if actor is not None:
                actor.stop.remote(why, grace_s)

    @translated
    def kill_agent(self, job: str, attempt: int, node_rank: int) -> None:
        """Make sure that an agent is gone, whether it ever started or not. Idempotent."""
        actor = self._agent(job, attempt, node_rank)
        if actor is not None:
            ray.kill(actor, no_restart=True)

    @translated
    def certify(self, plan: LaunchPlan, node_rank: int, node_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The teardown certificate of a node whose agent died, made by a task on that very node."""
        task = _task_on(certify, node_id, runtime_env=_with_code(plan, node_rank))
        record: dict[str, Any] = ray.get(task.remote(plan.to_json(), node_rank), timeout=timeout_s)
        return record

    def answers(self, node_id: str, timeout_s: float = 10.0) -> bool:
        """Does a task on that very node come back?"""
        try:
            ray.get(_task_on(facts.incarnation, node_id).remote(), timeout=timeout_s)
        except (RayError, ConnectionError, TimeoutError):
            return False
        return True

    @translated
    def on_node(self, node_id: str, what: str, *arguments: Any, timeout_s: float = 60.0) -> Any:
        """Call a function of `cluster.chaos.faults` on that very node."""
        return ray.get(_task_on(_call_fault, node_id).remote(what, *arguments), timeout=timeout_s)

    @translated
    def preflight(self, node_id: str, work_root: str) -> Future[dict[str, Any]]:
        """What `preflight.facts.gather` sees on that very node; ClusterUnreachable from the future if it cannot."""
        return _future(_task_on(facts.gather, node_id).remote(work_root), "the preflight")

    @translated
    def bring_code(self, node_id: str, ours: code.Code, work_root: str) -> Future[str]:
        """Unpack our packages on that node; the future holds the folder, or ClusterUnreachable."""
        task = _task_on(code.unpack, node_id)
        return _future(task.remote(ours.archive, ours.digest, work_root), "unpacking our code")

    @translated
    def keep_spare(self, plan: LaunchPlan, node_ids: tuple[str, ...]) -> None:
        """Have Ray keep a process ready for the next agent on each of these nodes; returns at once.

        Ray starts a process when one is needed, which takes longer than anything else between grant and msrun (0.7 of
        1.1 s here), and with it one more than is needed. The first one ends with its only task; the other is nobody's,
        and stays where Ray has no more processes than CPUs. Where Ray does otherwise, the agent starts as it did.
        """
        for node_rank, node_id in enumerate(node_ids):
            _task_on(_LAST_TASK, node_id, runtime_env=_with_code(plan, node_rank)).remote()

    @translated
    def release(self, job: str, attempt: int, nodes: int) -> None:
        """Let agents and placement group go. Idempotent. Only after every node has certified its teardown."""
        for node_rank in range(nodes):
            actor = self._agent(job, attempt, node_rank)
            self._agents.pop((job, attempt, node_rank), None)
            if actor is not None:
                ray.kill(actor, no_restart=True)
        try:
            remove_placement_group(get_placement_group(f"gang/{job}/{attempt}"))
        except ValueError:
            return  # removed already


def _nothing() -> None:
    return None


_LAST_TASK: Any = ray.remote(max_calls=1)(_nothing)  # its process ends with it


def _task_on(function: Any, node_id: str, *, runtime_env: dict[str, Any] | None = None) -> Any:
    """A task for that very node, beside whatever runs there; of a function, or one that is remote already."""
    return _remote(function).options(
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        max_retries=0,
        runtime_env=runtime_env or {},
    )


@cache
def _remote(function: Any) -> Any:
    """The function or class as Ray runs it, made once: the head keeps each that is made anew, pickled, for ever.

    Pickled by Ray with its first call in a connection, so it may be made before there is one.
    """
    return function if isinstance(function, RemoteFunction) else ray.remote(function)


def _with_code(plan: LaunchPlan, node_rank: int) -> dict[str, Any]:
    """Ray's runtime environment for a process of ours on that node: the packages that were brought there come first."""
    root = plan.code_root(node_rank)
    return {"env_vars": {"PYTHONPATH": f"{root}:${{PYTHONPATH}}"}} if root else {}


def _future(reference: Any, what: str) -> Future[Any]:
    """A task's outcome, whatever Ray raises translated."""
    answer: Future[Any] = Future()

    def done(theirs: Future[Any]) -> None:
        error = theirs.exception()
        if error is None:
            answer.set_result(theirs.result())
        else:
            answer.set_exception(ClusterUnreachable(f"{what} failed: {_last_line(error)}"))

    reference.future().add_done_callback(done)
    return answer


def _last_line(error: BaseException) -> str:
    """What it comes down to: Ray puts a traceback before the error of a task."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
