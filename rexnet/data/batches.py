"""Batches of training and of validation, as the step takes them: numpy arrays, prepared ahead by threads.

Every byte of a batch is a pure function of the recipe, the step and the data: threads, reading ahead, seeking and the
number of ranks change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from jobs.errors import SpecError
from rexnet.data.ahead import Ahead, Task
from rexnet.data.augment import EvalTransform, TrainTransform
from rexnet.data.folder import Source
from rexnet.data.masks import mix_neighbours, mixup_lambda
from rexnet.data.order import Indices, SampleOrder
from rexnet.data.samples import Samples
from rexnet.recipe import Recipe

Array = np.ndarray[Any, Any]
_CHUNK = 8  # images a task: enough to make handing it over cheap; even, so that mixup's neighbours stay together


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch: n consecutive positions of the global batch.

    `samples` are those that were read, a corrupt one's substitute in its place. With mixup an image is `lam` of its
    own and 1 - lam of its neighbour's (position ^ 1), whose label is in `other_labels`; without, `lam` is 1.
    """

    images: Array  # (n, 3, size, size) float32, contiguous
    labels: Array  # (n,) int32
    other_labels: Array  # (n,) int32
    lam: float
    samples: Indices  # (n,) int64
    positions: range


class TrainBatches:
    """The training batches of one rank: `batch(step)` for any step, the one after the last without waiting.

    `num_threads` 0 does all work in `batch`; None takes none where all images stay in memory, and else as many as
    `num_parallel_workers` says and the process has CPUs. They work up to `depth` steps ahead (None: 2, with
    accumulation 1), and never on step `num_steps` or a later one. To be closed, or used in a `with`. SpecError if the
    shares do not come out even, or the recipe names an augmentation that is not supported.
    """

    def __init__(
        self, recipe: Recipe, source: Source, order: SampleOrder, *, rank: int = 0, world_size: int = 1,
        accumulation: int = 1, num_threads: int | None = None, depth: int | None = None, num_steps: int | None = None,
    ) -> None:  # fmt: skip
        self._recipe, self._order = recipe, order
        self._place = (rank, world_size, accumulation)
        self._samples = Samples(source, TrainTransform(recipe), seed=recipe.seed, max_corrupt=recipe.max_corrupt)
        micro_batch = len(order.micro_batches(0, *self._place)[0][0])
        if recipe.mixup and micro_batch % 2:
            raise SpecError(f"batch_size: mixup mixes neighbours, so it needs an even one, not {micro_batch}")
        if depth is None:
            depth = 2 if accumulation == 1 else 1  # 512 images of 224 px take 308 MB
        threads = _threads(num_threads, recipe, self._samples)
        self._ahead = Ahead(self._plan, num_threads=threads, depth=depth, stop=num_steps)

    @property
    def corrupt(self) -> dict[str, str]:
        """Name and reason of each corrupt image this rank has met so far."""
        return self._samples.corrupt

    def batch(self, step: int) -> list[Batch]:
        """The micro-batches of the step with this index (from 0).

        SpecError if there are more corrupt images than the recipe allows, OSError if an image cannot be read now.
        """
        return self._ahead.get(step)

    def close(self) -> None:
        """End the threads."""
        self._ahead.close()

    def __enter__(self) -> TrainBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, step: int) -> tuple[list[Batch], list[Task]]:
        recipe, size = self._recipe, self._recipe.image_resize
        lam = mixup_lambda(seed=recipe.seed, step=step, alpha=recipe.mixup, probability=recipe.cutmix_prob)
        batches: list[Batch] = []
        tasks: list[Task] = []
        for positions, samples in self._order.micro_batches(step, *self._place):
            number = len(positions)
            batch = Batch(
                images=np.empty((number, 3, size, size), np.float32),
                labels=np.empty(number, np.int32),
                other_labels=np.empty(number, np.int32),
                lam=lam,
                samples=samples.copy(),
                positions=positions,
            )
            batches.append(batch)
            epoch = self._order.epoch(step)
            tasks += [partial(self._fill, batch, epoch, slice(at, at + _CHUNK)) for at in range(0, number, _CHUNK)]
        return batches, tasks

    def _fill(self, batch: Batch, epoch: int, part: slice) -> None:
        """Fill a part of the batch; its `samples` hold what was asked for, and then what was read."""
        images, samples = batch.images[part], batch.samples[part]
        samples[:] = [
            self._samples.write_readable(sample, epoch, out)
            for sample, out in zip(samples.tolist(), images, strict=True)
        ]
        labels = self._samples.source.labels[samples]
        batch.labels[part] = labels
        if batch.lam == 1:
            batch.other_labels[part] = labels
        else:
            batch.other_labels[part] = labels.reshape(-1, 2)[:, ::-1].ravel()
            mix_neighbours(images, batch.lam)


class EvalBatches:
    """The validation batches of one rank, in the samples' order: (images, labels, weight), the same number on all.

    Images (batch_size, 3, size, size) float32, labels (batch_size,) int32, weight (batch_size,) float32: 1 for a
    sample, 0 for a corrupt one and for what fills the last batches up. Over all ranks each sample comes once. May be
    iterated again and again. To be closed, or used in a `with`.
    """

    def __init__(
        self, recipe: Recipe, source: Source, *, batch_size: int, rank: int = 0, world_size: int = 1,
        num_threads: int | None = None, depth: int = 2,
    ) -> None:  # fmt: skip
        self._size, self._batch_size, self._rank, self._world_size = recipe.image_resize, batch_size, rank, world_size
        self._samples = Samples(source, EvalTransform(recipe), seed=recipe.seed, max_corrupt=recipe.max_corrupt)
        threads = _threads(num_threads, recipe, self._samples)
        self._ahead = Ahead(self._plan, num_threads=threads, depth=depth, stop=len(self))

    def __len__(self) -> int:
        together = self._batch_size * self._world_size
        return (len(self._samples.source) + together - 1) // together

    @property
    def corrupt(self) -> dict[str, str]:
        """Name and reason of each corrupt image this rank has met so far."""
        return self._samples.corrupt

    def __iter__(self) -> Iterator[tuple[Array, Array, Array]]:
        return (self._ahead.get(index) for index in range(len(self)))

    def close(self) -> None:
        """End the threads."""
        self._ahead.close()

    def __enter__(self) -> EvalBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plan(self, index: int) -> tuple[tuple[Array, Array, Array], list[Task]]:
        number, source = self._batch_size, self._samples.source
        first = (index * self._world_size + self._rank) * number
        present = max(min(len(source) - first, number), 0)
        images = np.zeros((number, 3, self._size, self._size), np.float32)
        labels, weight = np.zeros(number, np.int32), np.zeros(number, np.float32)
        labels[:present] = source.labels[first : first + present]

        def fill(part: range) -> None:
            for i in part:
                weight[i] = self._samples.write(first + i, 0, images[i])

        tasks: list[Task] = [partial(fill, range(at, min(at + _CHUNK, present))) for at in range(0, present, _CHUNK)]
        return (images, labels, weight), tasks


def _threads(asked: int | None, recipe: Recipe, samples: Samples) -> int:
    if asked is not None:
        return asked
    return 0 if samples.keeps else min(recipe.num_parallel_workers, len(os.sched_getaffinity(0)))
