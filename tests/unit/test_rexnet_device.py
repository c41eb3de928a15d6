"""Joining the other ranks, as far as it concerns this process alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from rexnet.device import _one_thread_at_a_time
from rexnet.world import World


@pytest.fixture
def asleep() -> Iterator[list[threading.Thread]]:
    """Threads that were started here end with the test."""
    go, threads = threading.Event(), list[threading.Thread]()
    made = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        threads.append(thread)
        made(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        patch.setattr(threading.Thread, "run", lambda thread: go.wait(60) and None)
        yield threads
    go.set()
    for thread in threads:
        thread.join()


def place(thread: int) -> tuple[set[int], int]:
    return os.sched_getaffinity(thread), os.sched_getscheduler(thread)


@pytest.mark.parametrize("fails", [False, True])
def test_threads_that_joining_starts_keep_to_one_cpu_until_it_is_over(
    asleep: list[threading.Thread], fails: bool
) -> None:
    own = place(0)
    older = threading.Thread(daemon=True)
    older.start()
    world = World(rank=1, size=2, cpus=tuple(sorted(own[0])))
    one = {sorted(own[0])[1 % len(own[0])]}
    seen = []
    try:
        with _one_thread_at_a_time(world):
            younger = threading.Thread(daemon=True)
            younger.start()
            seen = [place(thread.native_id or 0) for thread in (older, younger)] + [place(0)]
            if fails:
                raise RuntimeError("no cluster")
    except RuntimeError:
        assert fails
    assert seen == [own, (one, os.SCHED_BATCH), (one, os.SCHED_BATCH)]
    assert [place(thread.native_id or 0) for thread in (older, younger)] + [place(0)] == [own] * 3


def test_policy_that_somebody_has_chosen_stays() -> None:
    own = place(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        with _one_thread_at_a_time(World(rank=1, size=2, cpus=tuple(sorted(own[0])))):
            assert place(0) == (own[0], os.SCHED_BATCH)
        assert place(0) == (own[0], os.SCHED_BATCH)
    finally:
        os.sched_setscheduler(0, own[1], os.sched_param(0))
