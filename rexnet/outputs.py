"""What rank 0 alone puts out: checkpoints and when they are made, the MLflow run, the recipe's weights' files."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from cluster.storage import ObjectStore
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.records import Start
from jobs.contract import ENV_MLFLOW_RUN
from jobs.manifest import Manifest
from jobs.retention import Retention
from rexnet.checkpoint import Arrays, CheckpointWriter, Progress
from rexnet.journal import Journal, Point
from rexnet.keep import WeightsKeeper
from rexnet.provenance import code_version
from rexnet.pulse import Pulse
from rexnet.recipe import Recipe
from rexnet.saving import Schedule, parse_rule, running_time
from rexnet.snapshot import State
from rexnet.tracking import Tracker
from rexnet.trail import Trail
from rexnet.world import World

log = logging.getLogger("rexnet.train")


class Outputs:
    """The outputs of one attempt of `job`, whose chain in `objects` is `store`.

    `journal` and `trail` are told what is committed, `pulse` what people are to see.
    """

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        store: CheckpointStore,
        start: Start,
        state: State,
        *,
        objects: ObjectStore,
        job: str,
        versions: Mapping[str, str],
        journal: Journal,
        trail: Trail,
        pulse: Pulse,
    ) -> None:
        self._recipe, self._store, self._start, self._objects, self._job = recipe, store, start, objects, job
        self._journal, self._trail, self._pulse = journal, trail, pulse
        self._tracker = self._open_tracker()
        self._writer = CheckpointWriter(
            store,
            state,
            attempt=start.attempt,
            start=start.manifest,
            constants={
                "config_sha256": recipe.digest(),
                "world_size": world.size,
                "seed": recipe.seed,
                "cpus": world.cpus,
                "code": code_version(),
                "versions": versions,
            },
            on_commit=self._committed,
            retention=self._retention(),
        )
        self._schedule = self._plan_saving()
        self._keeper = WeightsKeeper(recipe, recipe.ckpt_save_dir)

    # -- training

    def check(self) -> None:
        """Raise what the background writer has met that ends the attempt."""
        self._writer.check()

    @property
    def is_committing(self) -> bool:
        return self._writer.busy

    def first_step_done(self) -> None:
        self._schedule.begin(time.monotonic())

    def stepped(self, seconds: float, *, beside_commit: bool) -> None:
        self._schedule.stepped(seconds, beside_commit=beside_commit)

    def show(self, points: list[Point]) -> None:
        """To the attempt's own MLflow run, at once."""
        self._tracker.show(points)

    def keep_weights(self, arrays: Arrays, epoch: int, step: int, top1: float | None) -> None:
        """The recipe's weights' files, with what the epoch's validation gave if there was one."""
        self._keeper.add(arrays, epoch, step, top1)

    # -- checkpoints

    def checkpoint_is_due(self, step: int) -> bool:
        commit_s, failing = self._writer.commit_s, self._writer.failing
        return self._schedule.is_due(step, time.monotonic(), commit_s=commit_s, failing=failing)

    def save(self, progress: Progress) -> None:
        """Copy the state, which blocks; commit it in the background."""
        began = time.monotonic()
        with self._pulse.stalled():
            self._writer.save(progress)
        now = time.monotonic()
        self._schedule.saved(now, now - began)

    def saving(self) -> dict[str, Any]:
        """For the heartbeat: when checkpoints are made, what they cost, and what became of them."""
        return self._schedule.status(time.monotonic(), commit_s=self._writer.commit_s) | self._writer.counts()

    # -- ends

    def finish(self, progress: Progress, status: str, *, commit_s: float, timeout_s: float) -> None:
        """Commit the state for certain within `commit_s`, then close the MLflow run within `timeout_s`."""
        self._writer.finish(progress, timeout_s=commit_s)
        self._pulse.update(saving=self.saving())
        self._tracker.close(status, timeout_s)

    def fail(self) -> None:
        self._tracker.close("FAILED", timeout_s=1.0)

    # -- set-up

    def _open_tracker(self) -> Tracker:
        run_id = os.environ.get(ENV_MLFLOW_RUN) or None
        tracker = Tracker(
            run_id=run_id,
            attempt=self._start.attempt,
            job=self._job if run_id else self._objects.uri,
            params=self._recipe.model_dump(mode="json"),
            on_run=lambda run: self._pulse.update(mlflow_run=run),
        )
        if self._start.manifest is not None:
            tracker.replay(self._store, self._start.manifest)
        return tracker

    def _retention(self) -> Retention | None:
        """Which checkpoints keep their state; None if all do, or if the store is one to be collected at rest only."""
        recipe = self._recipe
        if recipe.ckpt_keep_last == 0:
            return None
        if self._objects.protocol == "allotted":
            log.info("action=nothing-retired cause=%s has no conditional put; collect when the job is at rest",
                     self._objects.uri)  # fmt: skip
            return None
        return Retention(
            last=recipe.ckpt_keep_last, every_steps=recipe.ckpt_keep_every or None, best=recipe.ckpt_keep_best
        )

    def _plan_saving(self) -> Schedule:
        earlier = [span for span in self._store.attempts() if span.attempt < self._start.attempt]
        return Schedule(
            parse_rule(self._recipe.ckpt_every),
            ran_before_s=running_time((span.started_at, span.last_commit_at) for span in earlier),
            num_interruptions=len(earlier),
            now=time.monotonic(),
        )

    def _committed(self, manifest: Manifest, points: list[Point]) -> None:
        """In the writer's thread: the manifest stands, so its points may be shown as the job's."""
        self._journal.committed(manifest.step)
        self._trail.committed(manifest.step)
        self._tracker.commit(points)
        self._pulse.update(
            checkpoint={"manifest": manifest.name, "step": manifest.step, "sha256": manifest.sha256()}, at_once=True
        )
        log.info("action=committed manifest=%s", manifest.name)
