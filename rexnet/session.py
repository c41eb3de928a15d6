"""One attempt of one rank: what the training loop's lines mean. `train.run_rank` is the loop.

Everything here happens on all ranks alike unless it says otherwise; rank 0 alone writes to the store and to MLflow.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import mindspore as ms
import numpy as np
from mindspore import Tensor

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.probe import probe
from jobs.certificate import START
from jobs.contract import ENV_COMMIT_PROTOCOL, ENV_DRAIN_GRACE, ENV_JOB, ENV_STORE, Phase
from jobs.errors import SpecError
from jobs.manifest import Manifest
from rexnet import kernels, resume
from rexnet.checkpoint import Arrays, Progress, copy_arrays
from rexnet.data.batches import Batch, EvalBatches, TrainBatches
from rexnet.data.folder import ImageFolder
from rexnet.data.masks import dropout_mask, path_mask
from rexnet.data.order import SampleOrder
from rexnet.device import Ranks, mix_precision, start_device
from rexnet.evaluate import Evaluator
from rexnet.graphs import GraphCache
from rexnet.journal import Journal
from rexnet.model import create_model
from rexnet.outputs import Outputs
from rexnet.provenance import library_versions
from rexnet.pulse import Pulse
from rexnet.recipe import Recipe, learning_rate
from rexnet.snapshot import Source, State
from rexnet.step import ShareStatistics, TrainStep, average_decay
from rexnet.trail import Trail
from rexnet.world import StopRequest, World

log = logging.getLogger("rexnet.train")
DRAIN_GRACE_S = 60.0  # from SIGTERM to SIGKILL, if nobody says
LAST_COMMIT_S = 600.0  # for the commit of a run's last step, which nobody is in a hurry for


class Session:
    """State of the run on this rank. `step` counts optimiser steps done since the job's start."""

    def __init__(self, recipe: Recipe, world: World, stop: StopRequest, pulse: Pulse, graphs: GraphCache) -> None:
        self.recipe, self.world, self.stop, self.pulse, self.graphs = recipe, world, stop, pulse, graphs
        self.accumulation = recipe.accumulation(world.size)
        train_set = ImageFolder(recipe.data_dir, recipe.train_split, num_classes=recipe.num_classes)
        val_set = ImageFolder(recipe.data_dir, recipe.val_split, num_classes=recipe.num_classes)
        if train_set.classes != val_set.classes:
            odd = sorted(set(train_set.classes) ^ set(val_set.classes))
            raise SpecError(f"data_dir: {recipe.train_split} and {recipe.val_split} have other classes: {odd[:5]}",
                            hint="the same folders have to be in both")  # fmt: skip
        self.order = SampleOrder(
            seed=recipe.seed,
            num_samples=min(len(train_set), recipe.num_samples or len(train_set)),
            global_batch=recipe.batch_size * world.size * self.accumulation,
            shuffle=recipe.shuffle,
            split_size=len(train_set),
        )
        planned = recipe.epoch_size * self.order.steps_per_epoch
        self.total_steps = min(planned, recipe.max_steps) if recipe.max_steps else planned
        pulse.update(total_steps=self.total_steps)
        device = start_device(world)
        stop.install()
        self.network = create_model(
            recipe.model, num_classes=recipe.num_classes, image_size=recipe.image_resize, seed=recipe.seed,
            drop_path_rate=recipe.drop_path_rate,
        )  # fmt: skip
        note = mix_precision(self.network, recipe, device)
        self.ranks = Ranks(world)
        self.versions = library_versions(device) | {"kernels": kernels.digest()}
        self.ranks.agree("the digest of the kernels", self.versions["kernels"])
        # With another one on each rank, bits would depend on who ran where.
        self._use_common(kernels.INSTRUCTION_SETS)
        alike = self.ranks.same(f"{self.versions} {len(world.cpus)}")
        if not alike and world.is_first:
            log.warning("action=ranks-differ cause=versions or number of CPUs: bits depend on where")
        self.train = TrainStep(self.network, recipe, world.size, self.accumulation)
        self.parameters = list(self.network.get_parameters())
        self.share_statistics = ShareStatistics(self.network, world.rank) if world.size > 1 else None
        self.batches = TrainBatches(
            recipe, train_set, self.order, rank=world.rank, world_size=world.size, accumulation=self.accumulation,
            num_steps=self.total_steps,
        )  # fmt: skip
        self.val_batches = EvalBatches(
            recipe, val_set, batch_size=recipe.batch_size, rank=world.rank, world_size=world.size
        )
        self.evaluator = Evaluator(self.network, self.val_batches, world, val_set.classes)
        self.metrics: dict[str, float] = {}  # of the validation of this very step; none while it is owed
        self.lr = self.images_per_s = 0.0
        self.trail = Trail()
        self.compiled = False
        if world.is_first:
            self._say_settings(device, note)

    def __enter__(self) -> Session:
        self.pulse.enter(Phase.RESUMING)
        uri = os.environ.get(ENV_STORE) or self.recipe.ckpt_store or f"file://{Path.cwd() / 'checkpoints'}"
        job = os.environ.get(ENV_JOB, "bare")
        objects = open_store(uri, os.environ.get(ENV_COMMIT_PROTOCOL) or "create-only")
        if self.world.is_first:
            probe(objects)  # before a night is spent on what could never be saved
        self.store = CheckpointStore(objects, job)
        self.start = resume.start_attempt(self.store, self.world, self.ranks)
        self.step = self._restore(self.start.manifest)
        self.journal = Journal(Path(f"journal-{self.start.attempt:06d}-rank{self.world.rank}.jsonl"))
        self.outputs: Outputs | None = None
        if self.world.is_first:
            state = State([Source.whole(parameter) for parameter in self.parameters] + self.train.sources())
            self.outputs = Outputs(
                self.recipe, self.world, self.store, self.start, state, objects=objects, job=job,
                versions=self.versions, journal=self.journal, trail=self.trail, pulse=self.pulse,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.batches.close()
        self.val_batches.close()
        if self.outputs is not None and error is not None:
            self.outputs.fail()
        self.journal.close()

    # -- the lines of the loop

    def train_step(self) -> tuple[float, bool]:
        """Do one step; returns the mean loss over all ranks and whether they all stop after it."""
        recipe, step = self.recipe, self.step
        if not self.compiled:
            self.pulse.enter(Phase.COMPILING)
        if self.outputs is not None:
            self.outputs.check()
        began, beside_commit = time.monotonic(), self.outputs is not None and self.outputs.is_committing
        with self.pulse.waiting_for_data():
            micro_batches = self.batches.batch(step)
        self.lr = learning_rate(recipe, step, self.order.steps_per_epoch) * recipe.lr_factor(self.world.size)
        lam = micro_batches[0].lam
        control = (self.lr, float(bool(self.stop)), lam, average_decay(recipe.ema_decay, step))
        inputs = [self._inputs(batch) for batch in micro_batches]
        loss, stop = self.train(inputs, Tensor(np.array(control, np.float32)))
        mean_loss, num_stop = float(loss.asnumpy()), float(stop.asnumpy())
        self.step += 1
        self.metrics = {}  # what the validation before said is not of this state
        self._certify(mean_loss, lam)
        self.images_per_s = self.order.global_batch / (time.monotonic() - began)
        if not self.compiled:
            self.compiled = True
            self.graphs.publish()  # now, since the first validation may be hours away
            if self.outputs is not None:
                self.outputs.first_step_done()
            self.pulse.enter(Phase.TRAINING, first_step_at=time.time(), step=self.step)
        elif self.outputs is not None:
            self.outputs.stepped(time.monotonic() - began, beside_commit=beside_commit)
        return mean_loss, num_stop > 0

    def record(self, loss: float) -> None:
        """Note the step's values: heartbeat, journal, live view."""
        epoch = self.order.epoch(self.step)
        self.pulse.update(
            step=self.step, epoch=epoch, loss=loss, images_per_s=self.images_per_s, stop_seen_at=self.stop.seen_at,
            saving=self.outputs.saving() if self.outputs is not None else None,
        )  # fmt: skip
        self._note({"train_loss": loss, "lr": self.lr, "images_per_s": self.images_per_s})
        if self.world.is_first and self.step % self.recipe.log_interval == 0:
            log.info("action=trained step=%d epoch=%d loss=%.4f lr=%.6f images_per_s=%.1f",
                     self.step, epoch, loss, self.lr, self.images_per_s)  # fmt: skip

    @property
    def validation_is_due(self) -> bool:
        epoch, rest = divmod(self.step, self.order.steps_per_epoch)
        due = self.recipe.val_while_train and rest == 0 and epoch % self.recipe.val_interval == 0
        return self.step == self.total_steps or due

    @property
    def epoch_is_over(self) -> bool:
        return self.step == self.total_steps or self.step % self.order.steps_per_epoch == 0

    @property
    def owes_validation(self) -> bool:
        """Whether the validation of this step was interrupted: its checkpoint, and no other, is one without metrics."""
        return self.step > 0 and self.validation_is_due and not self.metrics

    def catch_up(self) -> bool:
        """Validate what the attempt before was stopped in; False if this one was stopped in it, too.

        Training comes first, and is undone: MindSpore finds a cached graph by the order in which they are compiled.
        """
        self.pulse.enter(Phase.COMPILING)
        before = self._arrays()
        inputs = [self._inputs(batch) for batch in self.batches.batch(self.step - 1)]
        self.train(inputs, Tensor(np.zeros(4, np.float32)))[0].asnumpy()
        resume.set_arrays(before, f"step {self.step}", self.parameters, self.train)
        if not self.validate():
            return False
        self.keep_weights()
        return True

    def validate(self) -> bool:
        """Count over the whole validation split, with rank 0's batch-norm statistics on all ranks.

        False if a rank was told to stop meanwhile: then it is owed, and the next attempt begins with it.
        """
        self.pulse.enter(Phase.VALIDATING)
        with Averaged(self.network, self.train):
            if self.share_statistics is not None:
                self.share_statistics()
            metrics = self.evaluator.run(self._stops_validation)
        self.graphs.publish()
        self.metrics = metrics or {}
        if metrics is None:
            log.info("action=validation-stopped step=%d: the next attempt begins with it", self.step)
            return False
        self.pulse.enter(Phase.TRAINING, metrics=self.metrics)
        self._note({f"val_{key}": value for key, value in self.metrics.items()})
        if self.world.is_first:
            shown = " ".join(f"{key}={value:.4f}" for key, value in self.metrics.items())
            log.info("action=validated step=%d epoch=%d %s", self.step, self.order.epoch(self.step), shown)
        return True

    def _stops_validation(self) -> bool:
        """Asked every few batches: has any rank been told to stop? And a sign of life, since no step is made."""
        self.pulse.update()
        return self.ranks.sum(int(bool(self.stop))) > 0

    def keep_weights(self) -> None:
        """At an epoch's end: the recipe's weights' files, with what its validation gave if there was one."""
        if self.outputs is not None and self.recipe.ckpt_save_policy:
            top1 = self.metrics["top1"] if self.validation_is_due else None
            self.outputs.keep_weights(self._arrays(), self.order.epoch(self.step), self.step, top1)

    @property
    def checkpoint_is_due(self) -> bool:
        """Rank 0 decides, for it alone saves."""
        if self.outputs is None:
            return False
        if self.validation_is_due and self.recipe.ckpt_keep_best:
            return True  # so that the best one has a checkpoint of its own
        return self.outputs.checkpoint_is_due(self.step)

    def checkpoint(self) -> None:
        """Rank 0: copy the state and commit it in the background."""
        assert self.outputs is not None
        self.outputs.save(self._progress())

    def drain(self) -> None:
        """Commit the state for certain, and meet the other ranks; the caller exits DRAINED."""
        self.pulse.enter(Phase.DRAINING, stop_seen_at=self.stop.seen_at)
        grace_s = float(os.environ.get(ENV_DRAIN_GRACE) or DRAIN_GRACE_S)
        left_s = 0.9 * grace_s - self.stop.waits_s  # the rest is for the barrier and the way out
        self._finish("KILLED", commit_s=max(1.0, left_s), timeout_s=2.0)

    def complete(self) -> None:
        """Commit the last state for certain, and meet the other ranks; the caller exits DONE.

        No step is made meanwhile, and a slow store may take minutes: who watches for hangs has to know.
        """
        self.pulse.enter(Phase.DRAINING)
        self._finish("FINISHED", commit_s=LAST_COMMIT_S, timeout_s=5.0)
        self.pulse.enter(Phase.DONE)

    # -- set-up

    def _say_settings(self, device: str, note: str) -> None:
        order, recipe = self.order, self.recipe
        log.info("action=started model=%s device=%s ranks=%d batch_size=%d accumulation=%d global_batch=%d "
                 "steps=%d kernels=%s", recipe.model, device, self.world.size, recipe.batch_size, self.accumulation,
                 order.global_batch, self.total_steps, self.versions["kernels"][:12])  # fmt: skip
        if note:
            log.warning("action=amp-not-applied cause=%s", note)
        factor = recipe.lr_factor(self.world.size)
        if factor != 1:
            log.info("action=lr-scaled factor=%g: a step has %d samples, lr is meant for %d",
                     factor, order.global_batch, recipe.global_batch)  # fmt: skip

    def _restore(self, manifest: Manifest | None) -> int:
        """Load what the attempt starts from; returns the step it stands at."""
        quarantined = [{"manifest": q.manifest, "reason": q.reason} for q in self.start.quarantined]
        for item in quarantined if self.world.is_first else []:
            log.warning("action=checkpoint-quarantined manifest=%s cause=%s", item["manifest"], item["reason"])
        if manifest is None:
            resume.take_weights(self.network, self.recipe)
            self.train.start_average()
            self.pulse.update(at_once=True, resumed={"manifest": None, "step": 0}, quarantined=quarantined)
            return 0
        resume.restore(self.store, manifest, self.parameters, self.train, self.order.global_batch)
        self._use_common((manifest.versions.get("instruction_set", ""),))
        self.metrics = dict(manifest.metrics)
        self.trail = Trail(manifest.certificate or START)
        if self.world.is_first:
            for difference in resume.differences(manifest, self.world, self.recipe, self.versions):
                log.warning("action=resume-differs cause=%s: not bit-identical", difference)
            log.info("action=resumed manifest=%s step=%d attempt=%d", manifest.name, manifest.step, self.start.attempt)
        self.pulse.update(
            at_once=True, resumed={"manifest": manifest.name, "step": manifest.step}, quarantined=quarantined,
            step=manifest.step, epoch=manifest.epoch, metrics=self.metrics,
            checkpoint={"manifest": manifest.name, "step": manifest.step, "sha256": manifest.sha256()},
        )  # fmt: skip
        return manifest.step

    # -- helpers

    def _use_common(self, instruction_sets: Sequence[str]) -> None:
        """Run with the first of these that all ranks have, if there is one; the checkpoints tell what it is then."""
        common = self.ranks.first_common(instruction_sets, kernels.instruction_sets())
        if common is not None and common != kernels.instruction_set() and kernels.use(common):
            log.info("action=instruction-set name=%s: as the other ranks, or the checkpoint", common)
        self.versions = {**self.versions, "instruction_set": kernels.instruction_set()}

    def _inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """One micro-batch as the step takes it. What the recipe does not use is one number, and never read."""
        recipe, step, none = self.recipe, self.step, np.zeros((1, 1), np.float32)
        mask = path = none
        if recipe.drop_rate:
            mask = dropout_mask(
                seed=recipe.seed, step=step, positions=batch.positions, num_features=self.network.num_features,
                rate=recipe.drop_rate,
            )  # fmt: skip
        if self.network.path_rates:
            path = path_mask(seed=recipe.seed, step=step, positions=batch.positions, rates=self.network.path_rates)
        return tuple(Tensor(array) for array in (batch.images, batch.labels, batch.other_labels, mask, path))

    def _certify(self, loss: float, lam: float) -> None:
        """Extend the certificate. Masks and augmentations are functions of what goes in here, so they need not."""
        random_state = struct.pack("<QQdd", self.recipe.seed, self.order.epoch(self.step - 1), lam, self.train.scale())
        samples = self.order.global_indices(self.step - 1).astype("<i8").tobytes()
        self.trail.extend(self.step, samples, loss, random_state)

    def _arrays(self) -> Arrays:
        """Copies of all that a resume needs, by name."""
        return copy_arrays(self.parameters) | self.train.state()

    def _note(self, values: dict[str, float]) -> None:
        if self.outputs is not None:
            self.outputs.show(self.journal.add(self.step, values))

    def _progress(self) -> Progress:
        return Progress(
            step=self.step,
            epoch=self.order.epoch(self.step),
            samples=self.step * self.order.global_batch,
            points=self.journal.pending(),
            entries=self.trail.pending(),
            certificate=self.trail.digest,
            metrics=self.metrics,
        )

    def _finish(self, status: str, commit_s: float, timeout_s: float) -> None:
        if self.outputs is not None:
            self.outputs.finish(self._progress(), status, commit_s=commit_s, timeout_s=timeout_s)
        self.ranks.sum(1)
        self.graphs.publish()


class Averaged:
    """A context in which the network holds its moving averages; without EMA it changes nothing."""

    def __init__(self, network: ms.nn.Cell, train: TrainStep) -> None:
        self._average = train.average()
        self._parameters = list(network.get_parameters()) if self._average else []

    def __enter__(self) -> None:
        self._kept = copy_arrays(self._parameters)
        for parameter in self._parameters:
            parameter.set_data(Tensor(self._average[parameter.name]))

    def __exit__(self, *_: object) -> None:
        for parameter in self._parameters:
            parameter.set_data(Tensor(self._kept[parameter.name]))
