"""Which nodes are used: verdicts as values, and a census over scripted answers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.gang import Gangs
from cluster.preflight.code import Code
from jobs.budgets import Cause
from jobs.errors import ClusterUnreachable, SpecError
from jobs.spec import build_spec
from jobs.states import AttemptEnded, GangGranted, State
from orchestrator.control.census import Census, nodes_view
from orchestrator.control.fitness import VALID_S, Standing, differences, problem, survey
from orchestrator.stack import Stack
from orchestrator.store import Store
from orchestrator.submit import check_cluster, submit
from tests.support.nodes import PACKAGES, WANTED, facts


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Answers:
    """Nodes that answer when the test says so, and what they were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.brought: list[tuple[str, str]] = []
        self.futures: dict[str, Future[Any]] = {}
        self.code: Future[str] = Future()

    def preflight(self, node_id: str, work_root: str) -> Future[dict[str, Any]]:
        assert work_root == WANTED.work_root
        self.asked.append(node_id)
        self.futures[node_id] = Future()
        return self.futures[node_id]

    def bring_code(self, node_id: str, ours: Code, work_root: str) -> Future[str]:
        self.brought.append((node_id, ours.digest))
        return self.code


class World:
    def __init__(self, folder: Path) -> None:
        self.clock, self.gangs = Clock(), Answers()
        self.store = Store(f"sqlite:///{folder / 'store.db'}")
        self.store.migrate()
        self.census = self.new_census()
        self.see("n1", "n2")

    def new_census(self) -> Census:
        return Census(self.store, cast(Gangs, self.gangs), WANTED, clock=self.clock)

    def see(self, *ids: str, dead: tuple[str, ...] = ()) -> None:
        seen = [{"id": i, "host": f"host-{i[:2]}", "address": i[:2], "cpus": 2.0, "npus": 0.0} for i in (*ids, *dead)]
        self.store.see_nodes([{**node, "alive": node["id"] not in dead} for node in seen], now=self.clock())

    def answer(self, node: str, **changes: Any) -> None:
        self.gangs.futures[node].set_result(facts(host=f"host-{node}", **changes))
        self.census.step()

    def standing(self, node: str) -> Standing:
        return self.census.verdicts()[node].standing

    def reason(self, node: str) -> str:
        return self.census.verdicts()[node].reason


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.engine.dispose()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"python": "3.10"}, "h1 has Python 3.10 instead of 3.11"),
        ({"packages": {**PACKAGES, "mindspore": "2.9.0"}}, "h1 has MindSpore 2.9.0 instead of 2.10.0"),
        ({"packages": {n: v for n, v in PACKAGES.items() if n != "numpy"}}, "h1 has no numpy instead of 1.26.4"),
        ({"packages": {**PACKAGES, "requests": "1"}}, ""),
        ({"free_bytes": 1 << 29}, "h1 has 0.50 GiB free for /work instead of at least 1.00 (min_free_disk_gib)"),
        ({"unwritable": "Permission denied"}, "h1 has a work_root /work that cannot be written (Permission denied)"),
        ({"npus": {"0": "OK", "3": "Critical"}}, "h1 has NPU 3 in state Critical"),
        ({"npus": {"0": "UNKNOWN"}}, ""),
        (
            {"python": "3.12", "npus": {"1": "Alarm"}},
            "h1 has Python 3.12 instead of 3.11, and NPU 1 in state Alarm",
        ),
    ],
)
def test_problem_is_one_sentence_that_names_the_node(changes: dict[str, Any], said: str) -> None:
    assert problem(facts(**changes), WANTED) == said


def test_differing_distributions_are_named_on_both_sides() -> None:
    found = differences({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "3", "d": "4"})
    assert found == ["b 2 instead of 3", "c 3 instead of none", "no d instead of 4"]


def ascend_row(node: str, driver: str, *, alive: bool = True) -> dict[str, Any]:
    seen = {"looked_at": 1000.0, "ascend": {"driver": driver, "cann": "8.0"} if driver else {}}
    return {
        "id": node,
        "host": node,
        "address": node,
        "alive": alive,
        "incarnation": "b",
        "preflight": seen,
        "problem": "",
    }


def test_driver_that_most_nodes_do_not_have_is_left_out_and_a_tie_leaves_nobody_out() -> None:
    rows = [ascend_row("a", "24.1"), ascend_row("b", "24.1"), ascend_row("c", "23.0"), ascend_row("head", "")]
    verdicts = survey(rows, now=1000.0)
    assert [v.standing is Standing.USABLE for v in verdicts.values()] == [True, True, False, True]
    assert verdicts["c"].reason == "c has driver 23.0 instead of 24.1, which most nodes with NPUs have"
    tie = survey([ascend_row("a", "24.1"), ascend_row("c", "23.0"), ascend_row("d", "24.1", alive=False)], now=1000.0)
    assert tie["a"].standing is tie["c"].standing is Standing.USABLE


def test_node_is_not_used_before_it_has_answered_and_silence_is_no_verdict(world: World) -> None:
    world.census.step()
    world.census.step()
    assert world.gangs.asked == ["n1", "n2"], "each once"
    assert world.standing("n1") is Standing.UNKNOWN and "has not answered the preflight yet" in world.reason("n1")
    world.answer("n1")
    assert (world.standing("n1"), world.standing("n2")) == (Standing.USABLE, Standing.UNKNOWN)
    assert world.store.nodes()[0]["incarnation"] == "boot/1"
    assert [row["problem"] for row in world.store.nodes()] == ["", ""]


def test_node_whose_answer_does_not_come_is_said_to_be_silent_and_not_asked_twice(world: World) -> None:
    world.census.step()
    world.clock.now += 11
    world.census.step()
    assert world.reason("n1") == "host-n1 has not answered the preflight yet: no answer within 10 s"
    world.clock.now += 10_000
    world.census.step()
    assert world.gangs.asked == ["n1", "n2"], "a task that hangs there is not to get company"
    world.answer("n1")
    world.census.step()
    assert world.gangs.asked == ["n1", "n2", "n1"], "an answer to so old a question is old news"
    world.answer("n1")
    assert world.standing("n1") is Standing.USABLE


def test_failed_question_is_asked_again_later_and_the_last_answer_counts_meanwhile(world: World) -> None:
    world.census.step()
    world.answer("n1")
    world.clock.now += 301
    world.census.step()
    assert world.gangs.asked == ["n1", "n2", "n1"]
    world.gangs.futures["n1"].set_exception(ClusterUnreachable("the preflight failed: no route"))
    world.census.step()
    assert world.standing("n1") is Standing.USABLE
    world.clock.now += 9
    world.census.step()
    assert len(world.gangs.asked) == 3
    world.clock.now += 2
    world.census.step()
    assert world.gangs.asked[3:] == ["n1"]
    world.gangs.futures["n1"].set_exception(ClusterUnreachable("the preflight failed: no route"))
    world.census.step()
    world.clock.now = 1000.0 + VALID_S + 1
    assert world.standing("n1") is Standing.UNKNOWN and "no route" in world.reason("n1")


def test_problem_is_looked_at_again_soon_and_goes_away_when_mended(world: World) -> None:
    world.census.step()
    world.answer("n1", free_bytes=0)
    assert world.standing("n1") is Standing.LEFT_OUT
    world.clock.now += 11
    world.census.step()
    world.answer("n1")
    assert world.standing("n1") is Standing.USABLE


def test_what_was_seen_outlives_the_control_plane_and_counts_until_something_else_is_wanted(world: World) -> None:
    world.census.step()
    world.answer("n1")
    world.see("n1", "n2")
    world.census = world.new_census()
    world.census.step()
    assert world.gangs.asked == ["n1", "n2", "n2"] and world.standing("n1") is Standing.USABLE
    from dataclasses import replace

    world.census.wanted = replace(WANTED, min_free_bytes=1)
    assert world.standing("n1") is Standing.UNKNOWN
    world.census.step()
    assert world.gangs.asked[3:] == ["n1"]


def test_node_that_is_gone_is_forgotten_and_one_that_comes_back_is_asked(world: World) -> None:
    world.census.step()
    world.see("n2", dead=("n1",))
    world.census.step()
    assert world.standing("n1") is Standing.LOST
    world.see("n1b", "n2", dead=("n1",))
    world.census.step()
    assert world.gangs.asked == ["n1", "n2", "n1b"]


def test_node_that_ray_still_lists_is_not_used_once_its_host_has_booted_again(world: World) -> None:
    world.census.step()
    world.answer("n1")
    world.clock.now += 5
    world.see("n1", "n1b", "n2")
    assert world.standing("n1") is Standing.UNKNOWN and "host-n1 may have booted since" in world.reason("n1")
    world.census.step()
    world.answer("n1b", incarnation="boot/2")
    assert (world.standing("n1"), world.standing("n1b")) == (Standing.UNKNOWN, Standing.USABLE)
    assert world.reason("n1") == "host-n1 has booted since, and Ray lists it a second time"
    world.see("n1b", "n2", dead=("n1",))
    assert (world.standing("n1"), world.standing("n1b")) == (Standing.LOST, Standing.USABLE)


def test_node_that_is_left_out_says_why_whatever_else_its_host_has(world: World) -> None:
    world.census.step()
    world.answer("n1", python="3.10")
    world.see("n1", "n1b", "n2")
    assert world.standing("n1") is Standing.LEFT_OUT and "Python 3.10" in world.reason("n1")


def test_two_ray_nodes_of_one_boot_are_both_used(world: World) -> None:
    world.see("n1", "n1b", "n2")
    world.census.step()
    world.answer("n1")
    world.answer("n1b")
    assert (world.standing("n1"), world.standing("n1b")) == (Standing.USABLE, Standing.USABLE)


def test_node_with_other_code_is_used_once_ours_is_there(world: World) -> None:
    world.census.step()
    world.answer("n1", code="0" * 64)
    assert world.gangs.brought == [("n1", WANTED.code.digest)]
    assert world.standing("n1") is Standing.UNKNOWN
    world.gangs.code.set_result("/scratch/code/d")
    world.census.step()
    assert world.standing("n1") is Standing.USABLE
    assert world.store.nodes()[0]["preflight"]["code_root"] == "/scratch/code/d"


def test_code_that_cannot_be_brought_leaves_the_node_unused_without_a_verdict(world: World) -> None:
    world.census.step()
    world.answer("n1", code="")
    world.gangs.code.set_exception(ClusterUnreachable("unpacking our code failed: disk error"))
    world.census.step()
    assert world.standing("n1") is Standing.UNKNOWN and "disk error" in world.reason("n1")


def test_node_with_a_problem_gets_no_code(world: World) -> None:
    world.census.step()
    world.answer("n1", code="", free_bytes=0)
    assert world.gangs.brought == [] and world.standing("n1") is Standing.LEFT_OUT


def end_attempt(world: World, cause: Cause) -> None:
    spec = build_spec({"name": "j", "program": {"module": "m"}})
    world.store.submit("j", spec, store_uri="file:///o", init_from=None, now=world.clock())
    nodes = [{"id": "n1", "host": "host-n1", "address": "a"}]
    row = world.store.apply(world.store.get("j"), GangGranted(), now=world.clock(), action="granted", nodes=nodes)
    end = AttemptEnded(attempt=1, cause=cause, progressed=False, detail="")
    world.store.apply(row, end, now=world.clock(), action="ended")
    assert world.store.get("j").state is State.BACKOFF
    world.census.doubt(world.store.get("j"))


def test_node_of_an_attempt_that_infrastructure_ended_is_looked_at_before_its_next_use(world: World) -> None:
    world.census.step()
    world.answer("n1")
    world.clock.now += 5
    end_attempt(world, Cause.INFRASTRUCTURE)
    assert world.standing("n1") is Standing.UNKNOWN and "is being looked at again" in world.reason("n1")
    world.census.step()
    assert world.gangs.asked == ["n1", "n2", "n1"]
    world.answer("n1")
    world.census.doubt(world.store.get("j"))
    assert world.standing("n1") is Standing.USABLE, "once for each attempt"


def test_node_of_an_attempt_that_crashed_is_not_doubted(world: World) -> None:
    world.census.step()
    world.answer("n1")
    world.clock.now += 5
    end_attempt(world, Cause.CRASH)
    assert world.standing("n1") is Standing.USABLE


def test_gang_is_refused_for_left_out_nodes_and_not_for_nodes_that_have_not_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.submit.time.time", world.clock)
    two = build_spec({"name": "j", "program": {"module": "m"}, "gang": {"nodes": 2}})
    world.census.step()
    check_cluster(two, world.store)
    world.answer("n1", python="3.12")
    with pytest.raises(SpecError, match=r"has 1 node that can be used; left out: host-n1 has Python 3.12 instead"):
        check_cluster(two, world.store)


def test_gang_larger_than_the_number_of_hosts_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.submit.time.time", world.clock)
    world.see("n1", "n1b")
    two = build_spec({"name": "j", "program": {"module": "m"}, "gang": {"nodes": 2}})
    said = "gang.nodes is 2, the cluster has 2 nodes on 1 host, of which a gang takes one node each"
    with pytest.raises(SpecError) as refused:
        check_cluster(two, world.store)
    assert str(refused.value).startswith(said)
    world.see("n1", "n1b", "n2")
    check_cluster(two, world.store)


class Round:
    """A stack whose control plane sees `nodes` in its next round."""

    def __init__(self, world: World, *nodes: str) -> None:
        self.home = SimpleNamespace(embedded_ray=False, objects_uri="file:///objects")
        self.world, self.nodes = world, nodes

    def await_round(self, store: Store, *, since: float) -> None:
        assert since == self.world.clock.now
        self.world.see(*self.nodes)


def test_node_that_has_just_come_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.submit.time.time", world.clock)
    monkeypatch.setattr("orchestrator.submit.protocol_for", lambda *_, **__: "create-only")
    three = build_spec({"name": "j", "program": {"module": "m"}, "gang": {"nodes": 3}})
    with pytest.raises(SpecError, match="the cluster has 2 nodes"):
        submit(three, world.store, cast(Stack, Round(world, "n1", "n2")))
    assert submit(three, world.store, cast(Stack, Round(world, "n1", "n2", "n3"))).state is State.QUEUED


def test_view_shows_what_runs_where(world: World) -> None:
    world.census.step()
    world.answer("n2", npus={"1": "Alarm"})
    spec = build_spec({"name": "j", "program": {"module": "m"}})
    world.store.submit("j", spec, store_uri="file:///o", init_from=None, now=1.0)
    nodes = [{"id": "n1", "host": "host-n1", "address": "a"}]
    world.store.apply(world.store.get("j"), GangGranted(), now=1.0, action="granted", nodes=nodes)
    first, second = nodes_view(world.store, now=world.clock())
    assert (first["jobs"], first["state"]) == (["j"], "not looked at")
    assert (second["jobs"], second["state"]) == ([], "left out") and "NPU 1 in state Alarm" in second["problem"]
