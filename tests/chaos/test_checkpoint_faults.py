"""A short piece of the campaigns against the checkpoint chain (`make campaigns`), on a directory and a real radosgw."""

from __future__ import annotations

import os

import pytest

from cluster.storage import open_store
from tests.campaigns import damage, kills
from tests.conformance.backends import Backend

BOTH = pytest.mark.parametrize("backend", ["directory", "radosgw"], indirect=True)


@BOTH
def test_damage_is_detected_and_the_newest_whole_checkpoint_resumed(backend: Backend) -> None:
    for seed in range(1000, 1008):
        case = damage.run_case(open_store(f"{backend.uri}/{seed}"), seed)
        assert case.detected and not case.wrong_resume, case


@BOTH
@pytest.mark.parametrize("work", ["write", "collect"])
def test_kill_leaves_the_old_or_the_new_checkpoint_whole(backend: Backend, work: str) -> None:
    environment = {**os.environ, **backend.environment}
    kill = {"write": kills.writer_killed, "collect": kills.collector_killed}[work]
    fresh = iter(range(100))
    usual_s = kills.usual_seconds(work, lambda: f"{backend.uri}/usual-{next(fresh)}", environment)
    for seed in range(2000, 2003):
        killed = kill(f"{backend.uri}/{seed}", environment, seed, usual_s)
        assert not killed.problem, killed
