"""When to save: the three rules, Daly's interval beside the cost it is to minimise, and what auto makes of a run."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import SpecError
from orchestrator.cli.summary import saving_line
from rexnet.saving import (
    FIRST_S,
    LONGEST_S,
    PRIOR_S,
    RETRY_S,
    Rule,
    Schedule,
    daly_interval,
    parse_rule,
    running_time,
)

DAY = 86400.0


def schedule(rule: str = "auto", *, ran_before_s: float = 0.0, num_interruptions: int = 0) -> Schedule:
    return Schedule(parse_rule(rule), ran_before_s=ran_before_s, num_interruptions=num_interruptions, now=0.0)


def due(one: Schedule, step: int, now: float, *, commit_s: float = 0.0, failing: bool = False) -> bool:
    return one.is_due(step, now, commit_s=commit_s, failing=failing)


def expected_run(work_s: float, cost_s: float, mean_time_s: float) -> float:
    """Daly's complete model without restart time: how many times longer than its work a run takes."""
    return mean_time_s / work_s * math.expm1((work_s + cost_s) / mean_time_s)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("500 steps", Rule(every_steps=500)),
        ("1 step", Rule(every_steps=1)),
        ("20steps", Rule(every_steps=20)),
        ("30 s", Rule(every_s=30)),
        ("0.5s", Rule(every_s=0.5)),
        ("10 min", Rule(every_s=600)),
        ("2 h", Rule(every_s=7200)),
        ("auto", Rule()),
    ],
)
def test_a_rule_as_people_write_it_is_read(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["", "500", "0 steps", "0 s", "1.5 steps", "-3 s", "30 seconds", "every 3 s", "Auto"])
def test_anything_else_is_refused_with_what_is_valid(text: str) -> None:
    with pytest.raises(SpecError, match=r"say 500 steps, 30 s, 10 min, 1 h or auto"):
        parse_rule(text)


def test_every_n_steps_is_due_at_multiples_whatever_the_time() -> None:
    one = schedule("3 steps")
    assert [step for step in range(1, 10) if due(one, step, 1e6, failing=True)] == [3, 6, 9]


def test_every_t_seconds_is_due_so_long_after_the_last_save() -> None:
    one = schedule("30 s")
    assert not due(one, 1, 29.9) and due(one, 2, 30.0)
    one.saved(31.0, 0.01)
    assert not due(one, 3, 60.9) and due(one, 4, 61.0)


@given(cost_s=st.floats(1e-3, 1e3), mean_time_s=st.floats(1.0, 1e7))
def test_dalys_interval_is_the_cheapest_of_its_own_model(cost_s: float, mean_time_s: float) -> None:
    interval = daly_interval(cost_s, mean_time_s)
    if cost_s <= mean_time_s / 2:  # an approximation in cost / mean time
        best = min(expected_run(interval * factor, cost_s, mean_time_s) for factor in (0.7, 0.85, 1.15, 1.3))
        assert expected_run(interval, cost_s, mean_time_s) < best
    assert 0 < interval <= math.sqrt(2 * cost_s * mean_time_s) * 1.5


def test_a_cheap_checkpoint_has_youngs_interval() -> None:
    assert daly_interval(0.02, DAY) == pytest.approx(math.sqrt(2 * 0.02 * DAY), rel=1e-3)


def test_a_cost_beyond_the_time_between_interruptions_waits_for_that_time() -> None:
    assert daly_interval(20.0, 10.0) == 10.0


def test_running_time_counts_to_the_last_commit_and_never_below_zero() -> None:
    assert running_time([(100.0, 400.0), (500.0, None), (900.0, 890.0), (1000.0, 1060.0)]) == 360.0


def test_time_between_interruptions_begins_with_a_day_and_follows_the_run() -> None:
    assert schedule().mean_time_s(0.0) == PRIOR_S
    assert schedule(ran_before_s=5000.0, num_interruptions=3).mean_time_s(1000.0) == (6000.0 + PRIOR_S) / 4


def test_auto_before_any_measurement_saves_after_a_minute() -> None:
    one = schedule()
    assert not due(one, 1, FIRST_S - 0.1) and due(one, 1, FIRST_S)


def test_compilation_before_the_first_step_is_nothing_to_save() -> None:
    one = schedule("30 s")
    one.begin(463.0)
    assert not due(one, 1, 463.0) and due(one, 9, 493.0)
    assert one.mean_time_s(463.0) == PRIOR_S


def test_auto_then_follows_cost_and_interruptions() -> None:
    cheap, often, dear = schedule(), schedule(num_interruptions=99), schedule()
    for one, blocked_s in ((cheap, 0.01), (often, 0.01), (dear, 1.0)):
        one.saved(60.0, blocked_s)
    expected = daly_interval(0.01, PRIOR_S + 60) + 0.01
    assert cheap.interval_s(60.0, commit_s=0.1) == pytest.approx(expected)
    assert often.interval_s(60.0, commit_s=0.1) == pytest.approx(expected / 10, rel=1e-2)
    assert dear.interval_s(60.0, commit_s=0.1) == pytest.approx(expected * 10, rel=1e-2)
    assert not due(cheap, 9, 60 + expected - 0.1, commit_s=0.1) and due(cheap, 9, 60 + expected + 0.1, commit_s=0.1)


def test_auto_saves_every_half_hour_at_least_and_no_faster_than_commits_go() -> None:
    one = schedule()
    one.saved(0.0, 60.0)
    assert one.interval_s(0.0, commit_s=1.0) == LONGEST_S
    assert one.interval_s(0.0, commit_s=7200.0) == 7200.0
    quick = schedule()
    quick.saved(0.0, 1e-4)
    assert quick.interval_s(0.0, commit_s=20.0) == 20.0


def test_a_failed_commit_is_made_up_for_before_the_interval_is_over() -> None:
    one = schedule("10 min")
    one.saved(0.0, 0.01)
    assert not due(one, 1, RETRY_S) and due(one, 1, RETRY_S, failing=True)
    assert not due(one, 1, RETRY_S, failing=True, commit_s=120.0)  # each try takes so long before it fails
    short = schedule("5 s")
    assert due(short, 1, 5.0, failing=True)


def test_cost_has_what_commits_slow_down_once_both_kinds_of_steps_were_seen() -> None:
    one = schedule()
    assert one.cost_s is None
    for number in range(20):
        one.saved(float(number), 0.5 if number == 0 else 0.01)  # the first one touches fresh memory
        for _ in range(2):
            one.stepped(0.130, beside_commit=True)
        if number == 2:
            assert one.cost_s == pytest.approx(0.01)  # not enough of both yet
        one.stepped(0.100, beside_commit=False)
    assert one.cost_s == pytest.approx(0.01 + 2 * 0.030)


def test_steps_that_are_not_slower_beside_a_commit_cost_nothing() -> None:
    one = schedule()
    one.saved(0.0, 0.02)
    for beside, _ in itertools.product((True, False), range(10)):
        one.stepped(0.1 if beside else 0.11, beside_commit=beside)
    assert one.cost_s == pytest.approx(0.02)


def test_the_same_history_gives_the_same_decisions() -> None:
    def decisions() -> list[bool]:
        one, found = schedule(ran_before_s=1e4, num_interruptions=2), []
        for step in range(1, 400):
            found.append(due(one, step, step * 0.7, commit_s=0.3))
            one.stepped(0.7 + 0.01 * (step % 3), beside_commit=found[-1])
            if found[-1]:
                one.saved(step * 0.7, 0.01 + 0.001 * (step % 5))
        return found

    first = decisions()
    assert first == decisions() and 2 < sum(first) < 100


def test_status_says_the_rule_and_what_auto_rests_on() -> None:
    one = schedule(num_interruptions=1)
    one.saved(0.0, 0.02)
    status = one.status(0.0, commit_s=0.25)
    assert status == {
        "rule": "auto",
        "interval_s": round(daly_interval(0.02, PRIOR_S / 2) + 0.02, 3),
        "cost_s": 0.02,
        "commit_s": 0.25,
        "mean_time_between_interruptions_s": PRIOR_S / 2,
        "num_interruptions": 1,
    }
    assert schedule("20 steps").status(0.0, commit_s=0.0)["rule"] == "20 steps"
    assert "interval_s" not in schedule("20 steps").status(0.0, commit_s=0.0)
    assert schedule("10 min").status(0.0, commit_s=0.0)["interval_s"] == 600.0


def test_status_line_says_when_and_at_what_cost() -> None:
    schedule = Schedule(parse_rule("auto"), ran_before_s=3600.0, num_interruptions=1, now=0.0)
    counts = {"committed": 3, "coalesced": 1, "failed": 0}
    before = saving_line(schedule.status(0.0, commit_s=0.0) | counts)
    assert before == "auto, every 60 s; an interruption every 12.5 h (1 so far); 3 committed, 1 coalesced, 0 failed"
    schedule.saved(10.0, 0.02)
    after = saving_line(schedule.status(10.0, commit_s=0.3) | counts)
    assert "; one holds training up by 20 ms and takes 0.30 s to commit; " in after
    steps = Schedule(parse_rule("20 steps"), ran_before_s=0.0, num_interruptions=0, now=0.0)
    assert saving_line(steps.status(0.0, commit_s=0.0) | counts).startswith(
        "20 steps; an interruption every 24.0 h (0 so"
    )
