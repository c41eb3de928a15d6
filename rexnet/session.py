"""One attempt of one rank: what the training loop's lines mean. `train.run_rank` is the loop.

Everything here happens on all ranks alike unless it says otherwise; rank 0 alone writes to the store and to MLflow.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from cluster.storage import open_store
from cluster.storage.checkpoints import CheckpointStore, Start
from jobs.contract import ENV_ATTEMPT, ENV_INIT_FROM, ENV_JOB, ENV_MLFLOW_RUN, ENV_MUST_RESUME, ENV_STORE, Phase
from jobs.errors import CorruptCheckpoint
from jobs.manifest import Manifest
from rexnet.checkpoint import (
    STATE,
    CheckpointWriter,
    Snapshot,
    copy_arrays,
    parse_init_from,
    read_arrays,
    set_arrays,
)
from rexnet.data.augment import augment, dropout_mask, normalise
from rexnet.data.folder import ImageFolder
from rexnet.data.order import SampleOrder
from rexnet.evaluate import Evaluator
from rexnet.journal import Journal, Point
from rexnet.model import create_model
from rexnet.provenance import code_version, library_versions
from rexnet.pulse import Pulse
from rexnet.recipe import Recipe, learning_rate
from rexnet.step import ShareStatistics, SumOverRanks, TrainStep
from rexnet.tracking import Tracker
from rexnet.world import GraphCache, StopRequest, World

log = logging.getLogger("rexnet.train")


class Session:
    """State of the run on this rank. `step` counts optimiser steps done since the job's start."""

    def __init__(self, recipe: Recipe, world: World, stop: StopRequest, pulse: Pulse, graphs: GraphCache) -> None:
        self.recipe, self.world, self.stop, self.pulse, self.graphs = recipe, world, stop, pulse, graphs
        size = recipe.image_resize
        kind: dict[str, Any] = {
            "num_classes": recipe.num_classes, "size": size, "interpolation": recipe.interpolation
        }  # fmt: skip
        self.train_set = ImageFolder(recipe.data_dir, "train", **kind)
        val_set = ImageFolder(recipe.data_dir, "val", **kind)
        self.order = SampleOrder(
            seed=recipe.seed, num_samples=len(self.train_set), global_batch=recipe.batch_size * world.size
        )
        planned = recipe.epoch_size * self.order.steps_per_epoch
        self.total_steps = min(planned, recipe.max_steps) if recipe.max_steps else planned
        pulse.update(total_steps=self.total_steps)
        start_device(world)
        stop.install()
        self.network = create_model(
            recipe.model, num_classes=recipe.num_classes, image_size=recipe.image_resize, seed=recipe.seed
        )
        self.train_cell = TrainStep(self.network, recipe, world.size)
        self.state = [*self.network.get_parameters(), *self.train_cell.velocity]
        self.sum_over_ranks = SumOverRanks() if world.size > 1 else None
        self.share_statistics = ShareStatistics(self.network, world.rank) if world.size > 1 else None
        self.evaluator = Evaluator(self.network, val_set, world, recipe.batch_size)
        self.metrics: dict[str, float] = {}
        self.compiled = False

    def __enter__(self) -> Session:
        self.pulse.enter(Phase.RESUMING)
        self.start = self._start_attempt()
        self.step = self._restore(self.start.manifest)
        self.journal = Journal(Path(f"journal-{self.start.attempt:06d}-rank{self.world.rank}.jsonl"))
        self.tracker: Tracker | None = None
        self.writer: CheckpointWriter | None = None
        if self.world.is_first:
            self.tracker, self.writer = self._open_outputs()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tracker is not None and error is not None:
            self.tracker.close("FAILED", timeout_s=1.0)
        self.journal.close()

    # -- the lines of the loop

    def train_step(self) -> tuple[float, bool]:
        """Do one step; returns the mean loss over all ranks and whether they all stop after it."""
        recipe, step = self.recipe, self.step
        if not self.compiled:
            self.pulse.enter(Phase.COMPILING)
        began = time.monotonic()
        positions, samples = self.order.share(step, self.world.rank, self.world.size)
        epoch = step // self.order.steps_per_epoch
        images = [
            augment(
                self.train_set.image(int(sample)), seed=recipe.seed, epoch=epoch, sample=int(sample),
                shift_pixels=recipe.shift_pixels, hflip=recipe.hflip,
            )
            for sample in samples
        ]  # fmt: skip
        mask = dropout_mask(
            seed=recipe.seed, step=step, positions=positions, num_features=self.network.num_features,
            rate=recipe.drop_rate,
        )  # fmt: skip
        self.lr = learning_rate(recipe, step, self.order.steps_per_epoch)
        self.train_cell.set_train(True)
        loss, stop = self.train_cell(
            Tensor(normalise(np.stack(images))),
            Tensor(self.train_set.labels[samples]),
            Tensor(mask),
            Tensor(self.lr, ms.float32),
            Tensor(float(bool(self.stop)), ms.float32),
        )
        mean_loss, num_stop = float(loss.asnumpy()), float(stop.asnumpy())
        self.step += 1
        self.images_per_s = self.order.global_batch / (time.monotonic() - began)
        if not self.compiled:
            self.compiled = True
            self.pulse.enter(Phase.TRAINING, first_step_at=time.time(), step=self.step)
        return mean_loss, num_stop > 0

    def record(self, loss: float) -> None:
        """Note the step's values: heartbeat, journal, live view."""
        self.pulse.update(
            step=self.step, epoch=self.step // self.order.steps_per_epoch, loss=loss, images_per_s=self.images_per_s,
            stop_seen_at=self.stop.seen_at,
        )  # fmt: skip
        self._note({"train_loss": loss, "lr": self.lr, "images_per_s": self.images_per_s})

    @property
    def validation_is_due(self) -> bool:
        epoch, rest = divmod(self.step, self.order.steps_per_epoch)
        return self.step == self.total_steps or (rest == 0 and epoch % self.recipe.val_interval == 0)

    def validate(self) -> None:
        """Count over the whole validation split, with rank 0's batch-norm statistics on all ranks."""
        self.pulse.enter(Phase.VALIDATING)
        if self.share_statistics is not None:
            self.share_statistics()
        self.metrics = self.evaluator.run()
        self.graphs.publish()
        self.pulse.enter(Phase.TRAINING, metrics=self.metrics)
        self._note({f"val_{key}": value for key, value in self.metrics.items()})
        if self.world.is_first:
            shown = " ".join(f"{key}={value:.4f}" for key, value in self.metrics.items())
            log.info(
                "action=validated step=%d epoch=%d images_per_s=%.1f loss=%.4f %s", self.step, self.pulse.now.epoch,
                self.images_per_s, self.pulse.now.loss or 0.0, shown,
            )  # fmt: skip

    @property
    def checkpoint_is_due(self) -> bool:
        return self.step % self.recipe.ckpt_every_steps == 0

    def checkpoint(self) -> None:
        """Rank 0: copy the state and commit it in the background; skip it if the last one is not through."""
        if self.writer is None:
            return
        if self.writer.busy:
            self.writer.skip(self.step)
            return
        with self.pulse.stalled():
            self.writer.start(self._snapshot())

    def drain(self) -> None:
        """Commit the state for certain, and meet the other ranks; the caller exits DRAINED."""
        self.pulse.enter(Phase.DRAINING, stop_seen_at=self.stop.seen_at)
        self._finish("KILLED", timeout_s=2.0)

    def complete(self) -> None:
        """Commit the last state for certain, and meet the other ranks; the caller exits DONE."""
        self._finish("FINISHED", timeout_s=5.0)
        self.pulse.enter(Phase.DONE)

    # -- set-up

    def _start_attempt(self) -> Start:
        """Rank 0 pins the attempt; the others read the pin. The number travels in a sum, which is the barrier too."""
        uri = os.environ.get(ENV_STORE) or self.recipe.ckpt_store or f"file://{Path.cwd() / 'checkpoints'}"
        self.store_uri, self.job = uri, os.environ.get(ENV_JOB, "bare")
        self.store = CheckpointStore(open_store(uri), self.job)
        number = 0
        if self.world.is_first:
            asked = os.environ.get(ENV_ATTEMPT)
            start = self.store.start_attempt(
                int(asked) if asked else None, must_resume=os.environ.get(ENV_MUST_RESUME) or None
            )
            number = start.attempt
        number = self._sum(number)
        return start if self.world.is_first else self.store.pinned(number)

    def _restore(self, manifest: Manifest | None) -> int:
        """Load what the attempt starts from; returns the step it stands at."""
        quarantined = [{"manifest": q.manifest, "reason": q.reason} for q in self.start.quarantined]
        for item in quarantined if self.world.is_first else []:
            log.warning("action=checkpoint-quarantined manifest=%s cause=%s", item["manifest"], item["reason"])
        if manifest is None:
            init_from = os.environ.get(ENV_INIT_FROM)
            if init_from:
                self._init_from(init_from)
            self.pulse.update(at_once=True, resumed={"manifest": None, "step": 0}, quarantined=quarantined)
            return 0
        set_arrays(self.state, read_arrays(self.store.read(manifest, STATE), manifest.name), manifest.name)
        self.metrics = dict(manifest.metrics)
        self._say_differences(manifest)
        if self.world.is_first:
            log.info("action=resumed manifest=%s step=%d attempt=%d", manifest.name, manifest.step, self.start.attempt)
        self.pulse.update(
            at_once=True, resumed={"manifest": manifest.name, "step": manifest.step}, quarantined=quarantined,
            step=manifest.step, epoch=manifest.epoch, metrics=self.metrics,
            checkpoint={"manifest": manifest.name, "step": manifest.step, "sha256": manifest.sha256()},
        )  # fmt: skip
        return manifest.step

    def _init_from(self, text: str) -> None:
        """Take the parameters, not the optimiser or the step, of another job's checkpoint."""
        uri, name, sha256 = parse_init_from(text)
        store = CheckpointStore(open_store(uri), "")
        manifest = store.load(name)
        if manifest.sha256() != sha256:
            raise CorruptCheckpoint(f"manifest {name} in {uri} has sha256 {manifest.sha256()}, not {sha256}")
        set_arrays(self.network.get_parameters(), read_arrays(store.read(manifest, STATE), name), name)
        if self.world.is_first:
            log.info("action=initialised manifest=%s of job %s", name, manifest.job)

    def _say_differences(self, manifest: Manifest) -> None:
        """What voids the claim that the resumed run ends with the same bytes is said, not refused."""
        now = {
            "workers": (manifest.world_size, self.world.size),
            "CPUs per worker": (len(manifest.cpus), len(self.world.cpus)),
            "recipe": (manifest.config_sha256[:8], self.recipe.digest()[:8]),
            "versions": (manifest.versions, library_versions()),
        }
        for what, (before, after) in now.items():
            if before != after and self.world.is_first:
                log.warning("action=resume-differs cause=%s were %s, are %s: not bit-identical", what, before, after)

    def _open_outputs(self) -> tuple[Tracker, CheckpointWriter]:
        run_id = os.environ.get(ENV_MLFLOW_RUN) or None
        tracker = Tracker(
            run_id=run_id,
            attempt=self.start.attempt,
            job=self.job if run_id else self.store_uri,
            params=self.recipe.model_dump(mode="json"),
            on_run=lambda run: self.pulse.update(mlflow_run=run),
        )
        if self.start.manifest is not None:
            tracker.replay(self.store, self.start.manifest)
        writer = CheckpointWriter(
            self.store,
            attempt=self.start.attempt,
            parent=self.start.manifest.name if self.start.manifest else None,
            constants={
                "config_sha256": self.recipe.digest(),
                "world_size": self.world.size,
                "seed": self.recipe.seed,
                "cpus": self.world.cpus,
                "code": code_version(),
                "versions": library_versions(),
            },
            on_commit=self._committed,
        )
        return tracker, writer

    # -- helpers

    def _note(self, values: dict[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.show(self.journal.add(self.step, values))

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            step=self.step,
            epoch=self.step // self.order.steps_per_epoch,
            samples=self.step * self.order.global_batch,
            arrays=copy_arrays(self.state),
            points=self.journal.pending(),
            metrics=self.metrics,
        )

    def _committed(self, manifest: Manifest, points: list[Point]) -> None:
        """In the writer's thread: the manifest stands, so its points may be shown as the job's."""
        self.journal.committed(manifest.step)
        assert self.tracker is not None
        self.tracker.commit(points)
        self.pulse.update(
            checkpoint={"manifest": manifest.name, "step": manifest.step, "sha256": manifest.sha256()}, at_once=True
        )
        log.info("action=committed manifest=%s", manifest.name)

    def _finish(self, status: str, timeout_s: float) -> None:
        if self.writer is not None and self.tracker is not None:
            self.writer.wait()
            newest = self.writer.newest or self.start.manifest
            if newest is None or newest.step != self.step:
                self.writer.finish(self._snapshot())
            self.tracker.close(status, timeout_s)
        self._sum(1)
        self.graphs.publish()

    def _sum(self, value: int) -> int:
        """Sum over ranks of a number below 2**24 (the CPU reduces floats only); all get here before any gets on."""
        if self.sum_over_ranks is None:
            return value
        return int(self.sum_over_ranks(Tensor([value], ms.float32)).asnumpy()[0])


def start_device(world: World) -> None:
    """Graph mode on CPU, or on Ascend where there is one; joins the other ranks."""
    ms.set_context(mode=ms.GRAPH_MODE)
    if world.size > 1:
        from mindspore.communication import init

        init()
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.STAND_ALONE)  # the step reduces by itself
