"""The scheduler's decisions, as values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.plan import Capacity, Demand, Grant, Holding, LeftOut, Preempt, Snapshot, Wait, Waiting, plan


def demand(nodes: int = 1, cpus: float = 2) -> Demand:
    return Demand(nodes=nodes, cpus=cpus, npus=0)


def waiting(job: str, priority: int = 0, at: float = 0, *, nodes: int = 1, cpus: float = 2) -> Waiting:
    return Waiting(job_id=job, priority=priority, submitted_at=at, demand=demand(nodes, cpus))


def holding(
    job: str, *nodes: str, priority: int = 0, cpus: float = 2, stopping: bool = False, unsaved_s: float = 0
) -> Holding:
    return Holding(
        job_id=job,
        priority=priority,
        demand=demand(len(nodes), cpus),
        node_ids=nodes,
        stopping=stopping,
        unsaved_s=unsaved_s,
    )


def decide(
    nodes: int, queue: list[Waiting], held: list[Holding] | None = None, *, paused: bool = False
) -> list[object]:
    capacity = tuple(Capacity(id=f"n{i}", cpus=2, npus=0) for i in range(nodes))
    return list(plan(Snapshot(nodes=capacity, waiting=tuple(queue), holding=tuple(held or []), paused=paused)))


def test_free_nodes_are_granted_in_order_of_priority_then_submission() -> None:
    decisions = decide(2, [waiting("late", at=2), waiting("early", at=1), waiting("urgent", 5, at=3)])
    assert [d.job_id for d in decisions if isinstance(d, Grant)] == ["urgent", "early"]
    (wait,) = (d for d in decisions if isinstance(d, Wait))
    assert wait.job_id == "late"


def test_gang_gets_all_its_nodes_or_none() -> None:
    (wait,) = decide(3, [waiting("wide", nodes=2)], [holding("a", "n0"), holding("b", "n1")])
    assert isinstance(wait, Wait) and "needs 2 nodes" in wait.reason


def test_waiting_job_keeps_what_is_free_from_those_behind_it() -> None:
    decisions = decide(2, [waiting("wide", nodes=2), waiting("narrow", at=1)], [holding("a", "n0")])
    assert not any(isinstance(d, Grant) for d in decisions)
    assert any(isinstance(d, Wait) and d.job_id == "narrow" and "behind wide" in d.reason for d in decisions)


def test_job_larger_than_the_cluster_waits_without_keeping_anybody() -> None:
    decisions = decide(1, [waiting("huge", 9, nodes=4), waiting("small")])
    assert any(isinstance(d, Grant) and d.job_id == "small" for d in decisions)
    assert any(isinstance(d, Wait) and "the cluster has 1 x 2 CPUs" in d.reason for d in decisions)


def test_higher_priority_preempts_the_cheapest_that_suffices() -> None:
    held = [
        holding("dear", "n0", unsaved_s=500),
        holding("cheap", "n1", unsaved_s=5),
        holding("important", "n2", priority=9),
    ]
    decisions = decide(3, [waiting("urgent", 5)], held)
    assert [d.job_id for d in decisions if isinstance(d, Preempt)] == ["cheap"]


def test_nobody_is_preempted_by_a_job_of_the_same_priority() -> None:
    (wait,) = decide(1, [waiting("next")], [holding("a", "n0")])
    assert isinstance(wait, Wait) and "a (priority 0)" in wait.reason


def test_nobody_is_preempted_while_somebody_already_drains_for_it() -> None:
    held = [holding("leaving", "n0", stopping=True), holding("other", "n1")]
    (wait,) = decide(2, [waiting("urgent", 5)], held)
    assert isinstance(wait, Wait) and "leaving to drain" in wait.reason


def test_nobody_is_preempted_in_vain() -> None:
    held = [holding("low", "n0"), holding("high", "n1", priority=9)]
    (wait,) = decide(2, [waiting("wide", 5, nodes=2)], held)
    assert isinstance(wait, Wait)


def test_paused_control_plane_grants_nothing() -> None:
    (wait,) = decide(2, [waiting("a")], paused=True)
    assert isinstance(wait, Wait) and "shut down" in wait.reason


@given(
    nodes=st.integers(0, 5),
    queue=st.lists(st.tuples(st.integers(-2, 2), st.integers(1, 4), st.sampled_from([1.0, 2.0])), max_size=6),
    held=st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 4), st.booleans()), max_size=5),
)
def test_no_plan_exceeds_capacity_or_preempts_upwards(
    nodes: int, queue: list[tuple[int, int, float]], held: list[tuple[int, int, bool]]
) -> None:
    jobs = [waiting(f"w{i}", p, at=i, nodes=n, cpus=c) for i, (p, n, c) in enumerate(queue)]
    taken: set[int] = set()
    holders = []
    for i, (priority, node, stopping) in enumerate(held):
        if node < nodes and node not in taken:
            taken.add(node)
            holders.append(holding(f"h{i}", f"n{node}", priority=priority, stopping=stopping))
    decisions = decide(nodes, jobs, holders)
    used = {f"n{i}": 0.0 for i in range(nodes)}
    for holder in holders:
        used[holder.node_ids[0]] += 2
    by_id = {job.job_id: job for job in jobs}
    for decision in decisions:
        if isinstance(decision, Grant):
            assert len(set(decision.node_ids)) == by_id[decision.job_id].demand.nodes
            for node_id in decision.node_ids:
                used[node_id] += by_id[decision.job_id].demand.cpus
        if isinstance(decision, Preempt):
            victim = next(h for h in holders if h.job_id == decision.job_id)
            assert victim.priority < by_id[decision.for_job].priority and not victim.stopping
    assert all(cpus <= 2 for cpus in used.values())
    answered = [d.job_id for d in decisions if isinstance(d, Grant | Wait)]
    assert sorted(answered) == sorted(by_id), "every waiting job is granted or told why not, once"


def on_hosts(job: Waiting, *addresses: str, held: tuple[Holding, ...] = ()) -> list[object]:
    capacity = tuple(Capacity(id=f"n{i}", cpus=2, npus=0, address=a) for i, a in enumerate(addresses))
    return list(plan(Snapshot(nodes=capacity, waiting=(job,), holding=held)))


def test_gang_takes_at_most_one_node_of_each_host() -> None:
    (grant,) = on_hosts(waiting("wide", nodes=2), "10.0.0.1", "10.0.0.1", "10.0.0.2")
    assert grant == Grant(job_id="wide", node_ids=("n0", "n2"))


def test_gang_larger_than_the_number_of_hosts_waits_and_is_told_so() -> None:
    (wait,) = on_hosts(waiting("wide", nodes=2), "10.0.0.1", "10.0.0.1")
    assert isinstance(wait, Wait)
    assert wait.reason.endswith("the cluster has 2 x 2 CPUs on 1 host, of which a gang takes one node each")


def test_two_gangs_share_a_host_of_two_nodes() -> None:
    (grant,) = on_hosts(waiting("next"), "10.0.0.1", "10.0.0.1", held=(holding("a", "n0"),))
    assert grant == Grant(job_id="next", node_ids=("n1",))


def test_nobody_is_preempted_for_a_second_node_of_the_same_host() -> None:
    held = (holding("low", "n1"), holding("high", "n2", priority=9))
    (wait,) = on_hosts(waiting("wide", 5, nodes=2), "10.0.0.1", "10.0.0.1", "10.0.0.2", held=held)
    assert isinstance(wait, Wait), "n0 is free, and n1 is on its host"


def out(node: str) -> LeftOut:
    return LeftOut(id=node, cpus=2, npus=0, reason=f"{node} has MindSpore 2.9.0 instead of 2.10.0")


def reason(nodes: int, job: Waiting, held: list[Holding], *left_out: LeftOut) -> str:
    capacity = tuple(Capacity(id=f"n{i}", cpus=2, npus=0) for i in range(nodes))
    snapshot = Snapshot(nodes=capacity, waiting=(job,), holding=tuple(held), left_out=left_out)
    (wait,) = plan(snapshot)
    assert isinstance(wait, Wait)
    return wait.reason


def test_job_that_would_fit_with_a_left_out_node_names_it() -> None:
    said = reason(1, waiting("wide", nodes=2), [], out("n7"))
    assert said.endswith("the cluster has 1 x 2 CPUs; left out: n7 has MindSpore 2.9.0 instead of 2.10.0")
    said = reason(2, waiting("wide", nodes=2), [holding("a", "n0")], out("n7"))
    assert "a (priority 0) holds them" in said and "left out: n7" in said


def test_job_that_would_not_fit_even_with_the_left_out_nodes_does_not_blame_them() -> None:
    assert "left out" not in reason(1, waiting("huge", nodes=4), [], out("n7"))
    assert "left out" not in reason(2, waiting("wide", nodes=2), [holding("a", "n0"), holding("b", "n7")], out("n7"))


def test_many_left_out_nodes_are_named_up_to_three() -> None:
    said = reason(1, waiting("wide", nodes=3), [], *(out(f"x{i}") for i in range(5)))
    assert "x2 has" in said and "x3 has" not in said and said.endswith("and 2 more")
