"""The real `CheckpointStore` against a model: starts, commits, deaths without one, and zombies, in every order.

The model knows what the code may not: the true line of manifests on which the newest attempt stands. A zombie here has
passed its fence just before the newer pin was written, which no look can prevent: its list of pins is an old one.
"""

from __future__ import annotations

import builtins
import dataclasses
import itertools
import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectInfo, ObjectStore
from cluster.storage.checkpoints import CheckpointStore
from jobs.chain import parse_pin_name
from jobs.errors import AlreadyExistsError, FencedError
from jobs.manifest import Manifest
from tests.conformance.backends import Backend
from tests.support.chains import make_commit
from tests.support.stores import Memory, Wrapped

NUM_ATTEMPTS = 3
EVENTS = ["start", "lose newest", 1, 2, 3]  # a number: that attempt commits, whether it is still the newest or not


class Late(Wrapped):
    """Sees no pin above `attempt`: its look at them was just before."""

    def __init__(self, store: ObjectStore, attempt: int) -> None:
        super().__init__(store)
        self._attempt = attempt

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        return [i for i in self.store.list(prefix) if (parse_pin_name(i.key) or 0) <= self._attempt]


class World:
    """A job's store, its writers, and the truth."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.writers: dict[int, CheckpointStore] = {}
        self.tips: dict[int, Manifest | None] = {}
        self.truth: list[Manifest] = []  # oldest first
        self.lost: set[str] = set()
        self.step = 0

    def play(self, event: str | int) -> None:
        newest = max(self.writers, default=0)
        if event == "start" and newest < NUM_ATTEMPTS:
            self._start(newest + 1)
        elif event == "lose newest" and sum(m.name not in self.lost for m in self.truth) > 1:
            manifest = next(m for m in reversed(self.truth) if m.name not in self.lost)
            self.store.delete(manifest.files[0].key)
            self.lost.add(manifest.name)
        elif isinstance(event, int) and event in self.writers:
            self.step += 10
            made = make_commit(self.writers[event], self.folder, event, self.step, self.tips[event])
            self.tips[event] = made
            if event == newest:
                self.truth.append(made)
            else:
                with pytest.raises(FencedError):  # one that looks now is told
                    make_commit(CheckpointStore(self.store, "j"), self.folder, event, self.step + 1, made)

    def _start(self, attempt: int) -> None:
        while self.truth and self.truth[-1].name in self.lost:
            self.truth.pop()
        start = CheckpointStore(self.store, "j").start_attempt(attempt)
        assert start.manifest == (self.truth[-1] if self.truth else None)
        self.writers[attempt] = CheckpointStore(Late(self.store, attempt), "j")
        self.tips[attempt] = start.manifest

    def check(self) -> None:
        alive = [one.name for one in CheckpointStore(self.store, "j").manifests() if one.live]
        assert alive == [manifest.name for manifest in reversed(self.truth)]


def test_every_order_of_events_resumes_the_truth(tmp_path: Path) -> None:
    for events in itertools.product(EVENTS, repeat=4):
        world = World(Memory(), tmp_path)
        for event in ("start", 1, *events, "start"):
            world.play(event)
        world.check()


@pytest.mark.parametrize("seed", range(2))
def test_random_orders_of_events_resume_the_truth_on_every_store(store: ObjectStore, tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    world = World(store, tmp_path)
    for event in ("start", 1, *generator.choices(EVENTS, weights=[2, 1, 2, 2, 2], k=12)):
        world.play(event)
    world.check()


def claim(backend: Backend, folder: str, number: int, start: Any, answers: Any) -> None:
    """One of many processes that all believe to be attempt 1 at step 10."""
    os.environ.update(backend.environment)
    writer = CheckpointStore(backend.open(), "j")
    path = Path(folder) / f"state-{number}"
    path.write_bytes(f"process {number}".encode())
    start.wait(120)
    try:
        made = make_commit(writer, path.parent, 1, 10, None, files={"state": path})
        answers.put((number, made.nonce, ""))
    except AlreadyExistsError as error:
        answers.put((number, "", str(error)))


@pytest.mark.parametrize("backend", ["directory", "radosgw"], indirect=True)
def test_of_24_processes_that_claim_one_attempt_and_step_one_wins_and_the_others_learn_who(
    backend: Backend, tmp_path: Path
) -> None:
    CheckpointStore(backend.open(), "j").start_attempt(1)
    told_of = dataclasses.replace(backend, server=None)  # the rest can be sent to another process
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cluster.storage.s3", "tests.conformance.backends", "tests.support.chains"])
    start, answers = context.Barrier(24), context.Queue()
    processes = [
        context.Process(target=claim, args=(told_of, str(tmp_path), number, start, answers)) for number in range(24)
    ]
    for process in processes:
        process.start()
    told = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    winners = [(number, nonce) for number, nonce, _ in told if nonce]
    assert len(winners) == 1
    assert all(f"nonce {winners[0][1]}" in message for _, nonce, message in told if not nonce)
    newest = CheckpointStore(backend.open(), "j").newest()
    assert newest is not None
    assert CheckpointStore(backend.open(), "j").read(newest, "state") == f"process {winners[0][0]}".encode()
