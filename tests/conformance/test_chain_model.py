"""The real `CheckpointStore` against a model: starts, commits, deaths without one, zombies, collections, in any order.

The model knows what the code may not: the true line of manifests on which the newest attempt stands. A zombie here has
passed its fence just before the newer pin was written, which no look can prevent: its list of pins is an old one. And
a start may find, when its pin is written, that its checkpoint was collected meanwhile, for one that it has not seen.
"""

from __future__ import annotations

import builtins
import dataclasses
import itertools
import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectInfo, ObjectStore
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.gc import collect
from jobs.chain import parse_pin_name
from jobs.errors import AlreadyExistsError, FencedError, StoreUnavailable
from jobs.manifest import Manifest
from jobs.retention import Retention
from tests.conformance.backends import Backend
from tests.support.chains import make_commit
from tests.support.stores import Memory, Wrapped

NUM_ATTEMPTS = 3
# A number: that attempt commits, whether it is still the newest or not. A start that is overtaken: between its look and
# its pin the newest attempt commits once more, and what is older is collected.
EVENTS: list[str | int] = ["start", "overtaken start", "lose newest", 1, 2, 3]


class Late(Wrapped):
    """Sees no pin above `attempt`: its look at them was just before."""

    def __init__(self, store: ObjectStore, attempt: int) -> None:
        super().__init__(store)
        self._attempt = attempt

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        return [i for i in self.store.list(prefix) if (parse_pin_name(i.key) or 0) <= self._attempt]


class Overtaken(Wrapped):
    """`happens` before the pin of an attempt is written."""

    def __init__(self, store: ObjectStore, happens: Callable[[], None]) -> None:
        super().__init__(store)
        self._happens = happens

    def before(self, operation: str, key: str) -> None:
        if operation == "create" and parse_pin_name(key) is not None:
            self._happens()


class World:
    """A job's store, its writers, and the truth."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.writers: dict[int, CheckpointStore] = {}
        self.tips: dict[int, Manifest | None] = {}
        self.truth: list[Manifest] = []  # oldest first
        self.lost: set[str] = set()  # their state, by a fault or by a collection
        self.step = self.num_starts = self.given_up = 0

    def play(self, event: str | int) -> bool:
        """Whether that can happen now, and so has."""
        if event in ("start", "overtaken start") and self.num_starts < NUM_ATTEMPTS:
            self._start(overtaken=event == "overtaken start")
        elif event == "collect" and self.truth:
            self._collect()
        elif event == "lose newest" and sum(m.name not in self.lost for m in self.truth) > 1:
            manifest = next(m for m in reversed(self.truth) if m.name not in self.lost)
            self.store.delete(manifest.files[0].key)
            self.lost.add(manifest.name)
        elif isinstance(event, int) and event in self.writers:
            made = self._commit(event)
            if event < self.num_starts:
                with pytest.raises(FencedError):  # one that looks now is told
                    make_commit(CheckpointStore(self.store, "j"), self.folder, event, self.step + 1, made)
        else:
            return False
        return True

    def _commit(self, attempt: int) -> Manifest:
        self.step += 10
        made = make_commit(self.writers[attempt], self.folder, attempt, self.step, self.tips[attempt])
        self.tips[attempt] = made
        if attempt == max(self.writers):
            self.truth.append(made)
        return made

    def _collect(self) -> None:
        self.lost.update(collect(self.store, "j", Retention(last=1)).retired)

    def _start(self, *, overtaken: bool) -> None:
        """A start that gives up changes nothing: those that began are what they were."""
        self.num_starts += 1
        seen = next((manifest for manifest in reversed(self.truth) if manifest.name not in self.lost), None)

        def happens() -> None:
            if overtaken and self.writers:
                self._commit(max(self.writers))
                self._collect()

        try:
            start = CheckpointStore(Overtaken(self.store, happens), "j").start_attempt(self.num_starts)
        except StoreUnavailable:
            assert overtaken and seen is not None and seen.name in self.lost
            self.given_up += 1
            return
        assert start.manifest == seen and (seen is None or seen.name not in self.lost)
        self.truth = self.truth[: self.truth.index(seen) + 1] if seen is not None else []
        self.writers[self.num_starts] = CheckpointStore(Late(self.store, self.num_starts), "j")
        self.tips[self.num_starts] = start.manifest

    def check(self) -> None:
        alive = [one.name for one in CheckpointStore(self.store, "j").manifests() if one.live]
        assert alive == [manifest.name for manifest in reversed(self.truth)]


def test_every_order_of_few_events_and_many_of_more_resume_the_truth(tmp_path: Path) -> None:
    given_up = 0
    generator = random.Random(1)
    longer = [tuple(generator.choices([*EVENTS, "collect"], k=8)) for _ in range(60)]
    for events in (*itertools.product(EVENTS, repeat=3), *longer):
        world = World(Memory(), tmp_path)
        order: tuple[str | int, ...] = ("start", 1, *events)
        happened = [world.play(event) for event in order]
        if len(events) == 3 and happened != sorted(happened, reverse=True):
            continue  # without what could not happen it is a shorter one, which comes with such events at its end
        world.play("start")
        world.check()
        given_up += world.given_up
    assert given_up


@pytest.mark.parametrize("seed", range(2))
def test_random_orders_of_events_resume_the_truth_on_every_store(store: ObjectStore, tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    world = World(store, tmp_path)
    middle = generator.choices([*EVENTS, "collect"], weights=[2, 1, 1, 2, 2, 2, 1], k=12)
    order: tuple[str | int, ...] = ("start", 1, *middle, "start")
    for event in order:
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
