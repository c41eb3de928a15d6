"""A rank's place and CPUs, from the environment alone; rexnet's light parts bring no MindSpore along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from jobs.errors import SpecError
from rexnet.world import StopRequest, find_world, share_of


def test_ranks_take_equal_disjoint_shares() -> None:
    shares = [share_of([4, 5, 6, 7, 8], rank, 2) for rank in range(2)]
    assert shares == [(4, 5), (6, 7)]


def test_more_ranks_than_cpus_share_them() -> None:
    assert [share_of([0, 1], rank, 4) for rank in range(4)] == [(0,), (1,), (0,), (1,)]


def test_msrun_worker_takes_its_share_of_the_named_cpus() -> None:
    environment = {"MS_WORKER_NUM": "2", "RANK_ID": "1", "MS_ROLE": "MS_WORKER", "REX_CPUS": "0,1,2,3"}
    world = find_world(environment, {0, 1}, distribute=True)
    assert (world.rank, world.size, world.cpus) == (1, 2, (2, 3))


def test_without_msrun_there_is_one_rank_with_all_cpus() -> None:
    world = find_world({}, {3, 1}, distribute=True)
    assert (world.rank, world.size, world.cpus, world.is_first) == (0, 1, (1, 3), True)


def test_msruns_scheduler_is_no_rank() -> None:
    assert find_world({"MS_WORKER_NUM": "2", "MS_ROLE": "MS_SCHED"}, {0}, distribute=True).is_scheduler


def test_bad_list_of_cpus_is_named() -> None:
    with pytest.raises(SpecError, match="REX_CPUS"):
        find_world({"REX_CPUS": "0-3"}, {0}, distribute=True)


def test_light_parts_import_neither_mindspore_nor_mlflow() -> None:
    code = (
        "import sys, rexnet, rexnet.recipe, rexnet.data.folder, rexnet.data.order, rexnet.tracking, rexnet.train\n"
        "import rexnet.checkpoint\n"
        "heavy = {'mindspore', 'mlflow', 'ray', 'boto3', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stop_request_counts_its_age_by_a_clock_that_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest().install()
    assert not stop and stop.waits_s == 0.0
    began = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    for jump_s in (3600.0, -3600.0):
        now = time.time() + jump_s
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert stop and 0.0 <= stop.waits_s <= time.monotonic() - began
