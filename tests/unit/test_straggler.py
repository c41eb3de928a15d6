"""The slow rank is named, with its host; noise is not."""

from __future__ import annotations

import os
import time
from typing import Any

from cluster.node.work import WorkMeter, work_seconds
from orchestrator.control.straggler import straggler

HOSTS = ["a", "b"]


def beats(*work_s: float | None) -> list[dict[str, Any]]:
    return [{"rank": rank, "phase": "training", "work_s": seconds} for rank, seconds in enumerate(work_s)]


def test_rank_that_works_longer_is_named_with_its_host() -> None:
    found = straggler(beats(0.1, 0.11, 0.2, 0.1), HOSTS, 2)
    assert found == {"rank": 2, "host": "b", "work_s": 0.2, "others_s": 0.1}


def test_two_ranks_are_compared_with_each_other() -> None:
    found = straggler(beats(0.1, 0.2), HOSTS, 1)
    assert found is not None and (found["rank"], found["others_s"]) == (1, 0.1)


def test_equal_ranks_and_noise_name_nobody() -> None:
    assert straggler(beats(0.1, 0.12, 0.11), HOSTS, 2) is None
    assert straggler(beats(0.001, 0.004), HOSTS, 1) is None


def test_ranks_that_do_not_train_or_did_not_say_are_left_out() -> None:
    assert straggler(beats(0.1, None), HOSTS, 1) is None
    validating = [{**beat, "phase": "validating"} for beat in beats(0.1, 0.9)]
    assert straggler(validating, HOSTS, 1) is None
    assert straggler([], HOSTS, 1) is None


def test_meter_divides_the_work_by_the_steps() -> None:
    meter = WorkMeter()
    for look in range(14):
        meter.add(10 + 10 * look, 5.0 + 2.0 * look)
        assert meter.per_step() is None, "too few looks to tell"
    meter.add(150, 33.0)
    assert meter.per_step() == 0.2
    meter.clear()
    assert meter.per_step() is None


def test_thread_that_ends_takes_its_account_along_and_no_more() -> None:
    meter = WorkMeter()
    work_s = 0.0
    for look in range(30):
        work_s += 2.0
        if look == 20:
            work_s -= 30.0  # a thread of checkpoints, say
        meter.add(10 * look, work_s)
    told = meter.per_step()
    assert told is not None and 0.18 < told <= 0.2


def test_run_that_goes_back_to_an_earlier_step_begins_anew() -> None:
    meter = WorkMeter()
    for look in range(20):
        meter.add(10 * look, float(look))
    meter.add(0, 21.0)
    assert meter.per_step() is None


def test_work_of_a_process_grows_with_what_it_computes_and_not_with_what_it_waits_for() -> None:
    pid = os.getpid()
    before = work_seconds(pid)
    time.sleep(0.2)
    slept = work_seconds(pid)
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    worked = work_seconds(pid)
    assert before is not None and slept is not None and worked is not None
    assert worked - slept > 0.19 and slept - before < worked - slept


def test_work_of_a_process_that_has_ended_is_unknown() -> None:
    assert work_seconds(2**22 + 1) is None
