"""What the control plane asks of Ray, as far as that can be seen without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RaySystemError

from cluster import gang
from cluster.node.certify import certify
from cluster.preflight import code, facts

NODE = "a" * 56


def test_function_of_many_tasks_is_given_to_ray_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `ray.remote` has an id of its own, under which the head keeps the pickled function for ever."""
    made: list[Any] = []
    real = ray.remote

    def counted(function: Any) -> Any:
        made.append(function)
        return real(function)

    gang._remote.cache_clear()
    monkeypatch.setattr(ray, "remote", counted)
    functions = [facts.gather, facts.incarnation, code.unpack, certify, gang._call_fault]
    for function in functions * 3:
        gang._task_on(function, NODE)
        gang._task_on(function, NODE, runtime_env={"env_vars": {"PYTHONPATH": "/code/x"}})
    gang._task_on(gang._LAST_TASK, NODE)
    assert made == functions


def test_functions_for_nodes_with_older_code_are_pickled_by_value_although_made_once() -> None:
    remote = gang._remote(facts.incarnation)
    assert b"boot_id" in ray.cloudpickle.dumps(remote._function)


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ActorDiedError(), "dead"),
        (OutOfMemoryError("Memory on the node was 15.3GB / 16.0GB;\n  the worker was killed"), "dead"),
        (RaySystemError("who knows"), "unreachable"),
    ],
)
def test_agent_that_ray_has_killed_is_dead_whatever_for_and_the_reason_is_kept(
    error: RayError, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(reference: Any, timeout: float) -> Any:
        raise error

    monkeypatch.setattr(ray, "get", get)
    view = gang.Gangs._view(object(), 1)
    assert (view.node_rank, view.answer) == (1, answer)
    assert view.detail == " ".join(str(error).split())
