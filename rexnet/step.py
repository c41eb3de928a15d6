"""What runs on the device: gradient, update, evaluation, and a sum over ranks; graph mode, static shapes.

All ranks' gradients, the loss and the wish to stop travel in one all-reduce, so agreeing where to stop costs nothing.
A step of one micro-batch is one graph; with gradient accumulation it is one for each micro-batch and one that ends it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from jobs.errors import SpecError
from rexnet import kernels
from rexnet.flat import Average, Gather, Scatter, length_of, split, sum_of_squares
from rexnet.kernels.ops import network_gradient
from rexnet.model import ReXNet
from rexnet.optimizer import create_optimizer
from rexnet.recipe import Recipe
from rexnet.snapshot import Source
from rexnet.weights import EMA_PREFIX

LR, STOP, MIX, EMA = range(4)  # places in `control`, the step's (4,) float32 vector of scalars
GROW_AFTER, LARGEST_SCALE = 2000, 2.0**24  # dynamic loss scale: doubled after so many steps without an overflow
Arrays = dict[str, np.ndarray[Any, Any]]


class Gradient(nn.Cell):  # type: ignore[misc]
    """Of one micro-batch: images (n, 3, h, w) float32, labels and other_labels (n,) int32, mask (n, num_features) and
    paths (n, num_paths) float32 (see `ReXNet.construct`), control (4,) -> a flat vector: all gradients of the scaled
    loss, then that loss, then the wish to stop.

    With mixup the loss is control[MIX] of that to `labels` and the rest of that to `other_labels`, which is the cross
    entropy to the mixed targets, since it is linear in them (arXiv 1710.09412).
    """

    def __init__(self, network: ReXNet, weights: ParameterTuple, recipe: Recipe, loss_scale: Parameter | None) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.mixes, self.drops, self.has_paths = recipe.mixup > 0, recipe.drop_rate > 0, bool(network.path_rates)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.fixed_scale, self.loss_scale = recipe.loss_scale, loss_scale
        self.gradients = ms.value_and_grad(self._loss, None, weights)
        self.gather = Gather()
        library = kernels.library() if isinstance(network, ReXNet) and network.fused else None
        self.is_one_operator = library is not None
        if library is not None:
            self.kernel = network_gradient(library, length_of(weights))
            self.kernel_parameters = ParameterTuple(network.kernel_inputs())
            self.kernel_plan = Tensor(network.kernel_plan(weights, drops=self.drops, mixes=self.mixes))
            self.kernel_scale = loss_scale if loss_scale is not None else Tensor(recipe.loss_scale, ms.float32)
            self.kernel_smoothing = Tensor(np.array([recipe.label_smoothing], np.float32))

    def construct(  # noqa: PLR0917
        self, images: Tensor, labels: Tensor, other_labels: Tensor, mask: Tensor, paths: Tensor, control: Tensor
    ) -> Tensor:
        if self.is_one_operator:
            given = (images, labels, other_labels, mask, paths, control, self.kernel_scale)
            return self.kernel(*given, self.kernel_smoothing, self.kernel_plan, *self.kernel_parameters)
        loss, gradients = self.gradients(images, labels, other_labels, mask, paths, control)
        return self.gather(gradients + (loss.reshape((1,)), control[STOP].reshape((1,))))  # noqa: RUF005

    def _loss(  # noqa: PLR0917
        self, images: Tensor, labels: Tensor, other_labels: Tensor, mask: Tensor, paths: Tensor, control: Tensor
    ) -> Tensor:
        logits = self.network(images, mask if self.drops else None, paths if self.has_paths else None)
        logits = logits.astype(ms.float32)  # under mixed precision on Ascend they are not
        loss = self.criterion(logits, labels)
        if self.mixes:
            loss = control[MIX] * loss + (1 - control[MIX]) * self.criterion(logits, other_labels)
        if self.loss_scale is not None:
            return loss * self.loss_scale
        return loss * self.fixed_scale if self.fixed_scale != 1 else loss


class Update(nn.Cell):  # type: ignore[misc]
    """From this rank's sum of `Gradient`s over `accumulation` micro-batches to new parameters on all ranks.

    Returns the mean loss over ranks and micro-batches, and a number above 0 if a rank wants to stop; equal on all
    ranks. Clipping is by the norm of the mean gradient. An overflow (dynamic loss scale, or `drop_overflow_update`)
    leaves parameters and optimiser as they were.
    """

    def __init__(self, network: ReXNet, recipe: Recipe, world_size: int, accumulation: int) -> None:
        super().__init__(auto_prefix=False)
        self.world_size, self.parts = world_size, world_size * accumulation
        self.weights = ParameterTuple(network.trainable_params())
        self.statistics = ParameterTuple([p for p in network.get_parameters() if not p.requires_grad])
        self.length = length_of(self.weights)
        self.optimizer = create_optimizer(self.weights, recipe)
        self.clip_norm = recipe.clip_value if recipe.clip_grad else 0.0
        self.fixed_scale = recipe.loss_scale
        self.divisor = Tensor(self.parts * recipe.loss_scale, ms.float32)
        self.dynamic = recipe.loss_scale_type == "dynamic"
        self.may_skip = self.dynamic or recipe.drop_overflow_update
        self.loss_scale: Any = None
        self.counters = dict(self.optimizer.counters)
        if self.dynamic:
            self.loss_scale = Parameter(Tensor(recipe.loss_scale, ms.float32), name="loss_scale", requires_grad=False)
            self.good_steps = Parameter(Tensor(0, ms.float32), name="loss_scale_good_steps", requires_grad=False)
            self.counters |= {p.name: p for p in (self.loss_scale, self.good_steps)}
        self.has_average, self.has_statistics = recipe.ema, len(self.statistics) > 0
        if self.has_average:
            self.average = Parameter(Tensor(np.zeros(self.length, np.float32)), name="ema", requires_grad=False)
            size = max(1, length_of(self.statistics))
            self.average_statistics = Parameter(
                Tensor(np.zeros(size, np.float32)), name="ema_statistics", requires_grad=False
            )
            self.move, self.move_statistics = Average(self.average), Average(self.average_statistics)
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM) if world_size > 1 else ops.identity

    def construct(self, flat: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
        if self.world_size > 1:
            flat = self.reduce(flat)
        divisor = self.loss_scale * self.parts if self.dynamic else self.divisor
        loss, stop = flat[self.length] / divisor, flat[self.length + 1]
        go = ops.ones_like(loss)
        if self.may_skip or self.clip_norm > 0:
            flat, divisor = flat[: self.length] / divisor, ops.ones_like(divisor)
        if self.may_skip:
            finite = ops.isfinite(flat.sum())
            go = finite.astype(ms.float32)
            flat = ops.select(finite, flat, ops.zeros_like(flat))
        if self.clip_norm > 0:
            flat = flat * ops.minimum(
                ops.ones_like(go), self.clip_norm / (ops.sqrt(sum_of_squares(flat, self.length)) + 1e-6)
            )
        loss = ops.depend(loss, self.optimizer(flat, divisor, control[LR], go))
        if self.dynamic:
            loss = ops.depend(loss, self._rescale(go))
        if self.has_average:
            # After the update and the forward pass, in which batch norm moves its statistics: the loss is.
            # It is the decay that waits: parameters that did would be copies, and the update would write to those.
            decay = ops.depend(control[EMA], loss)
            loss = ops.depend(loss, self.move(self.weights, decay))
            if self.has_statistics:
                loss = ops.depend(loss, self.move_statistics(self.statistics, decay))
        return loss, stop

    def _rescale(self, go: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the scale on an overflow, double it after `GROW_AFTER` steps without one."""
        good = (self.good_steps + 1) * go
        full = (good >= GROW_AFTER).astype(ms.float32)
        scale = self.loss_scale * (0.5 + 0.5 * go) * (1 + full)
        scale = ops.clamp(scale, 1.0, LARGEST_SCALE)
        return ops.assign(self.good_steps, good * (1 - full)), ops.assign(self.loss_scale, scale)


class Whole(nn.Cell):  # type: ignore[misc]
    """A step of one micro-batch, as one graph."""

    def __init__(self, gradient: Gradient, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.gradient, self.update = gradient, update

    def construct(  # noqa: PLR0917
        self, images: Tensor, labels: Tensor, other_labels: Tensor, mask: Tensor, paths: Tensor, control: Tensor
    ) -> Any:
        return self.update(self.gradient(images, labels, other_labels, mask, paths, control), control)


class Accumulate(nn.Cell):  # type: ignore[misc]
    """Adds a micro-batch to `total`, or starts it anew with `first` () bool."""

    def __init__(self, gradient: Gradient, length: int) -> None:
        super().__init__(auto_prefix=False)
        self.gradient = gradient
        self.total = Parameter(ops.zeros((length,)), name="accumulated", requires_grad=False)

    def construct(  # noqa: PLR0917
        self, images: Tensor, labels: Tensor, other_labels: Tensor, mask: Tensor, paths: Tensor, control: Tensor,
        first: Tensor,
    ) -> Tensor:  # fmt: skip
        flat = self.gradient(images, labels, other_labels, mask, paths, control)
        return ops.assign(self.total, ops.select(first, flat, self.total + flat))


class Finish(nn.Cell):  # type: ignore[misc]
    """Ends a step of several micro-batches."""

    def __init__(self, update: Update, total: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.total = update, total

    def construct(self, control: Tensor) -> Any:
        return self.update(self.total.value(), control)


class TrainStep:
    """One optimiser step of `accumulation` micro-batches on each of `world_size` ranks."""

    def __init__(self, network: ReXNet, recipe: Recipe, world_size: int, accumulation: int = 1) -> None:
        self._update = Update(network, recipe, world_size, accumulation)
        self._gradient = Gradient(network, self._update.weights, recipe, self._update.loss_scale)
        self._network = network
        self._is_whole = accumulation == 1
        if self._is_whole:
            self._whole = Whole(self._gradient, self._update)
        else:
            self._accumulate = Accumulate(self._gradient, self._update.length + 2)
            self._finish = Finish(self._update, self._accumulate.total)

    def state(self) -> Arrays:
        """Copies of all that a checkpoint holds besides the network: optimiser, loss scale, EMA.

        A vector over all weights is told apart as `momentum.<weight>`, `ema.<parameter>` and so on.
        """
        update = self._update
        found: Arrays = {}
        for name, moment in update.optimizer.moments.items():
            found |= split(moment.asnumpy().copy(), update.weights, f"{name}.")
        for name, counter in update.counters.items():
            found[name] = counter.asnumpy().copy()
        return found | {EMA_PREFIX + name: array for name, array in self.average().items()}

    def sources(self) -> list[Source]:
        """Where `state` lies, under the same names."""
        update = self._update
        moments = update.optimizer.moments.items()
        found = [Source.vector(moment, update.weights, f"{name}.") for name, moment in moments]
        found += [Source(counter, ((name, ()),)) for name, counter in update.counters.items()]
        if update.has_average:
            found.append(Source.vector(update.average, update.weights, EMA_PREFIX))
            if update.has_statistics:
                found.append(Source.vector(update.average_statistics, update.statistics, EMA_PREFIX))
        return found

    def set_state(self, arrays: Arrays, source: str) -> None:
        """Undo `state`. SpecError names what is missing or too much, or the first array of another shape."""
        update, wanted = self._update, self.state()
        for what, names in (("lacks", wanted.keys() - arrays.keys()), ("also holds", arrays.keys() - wanted.keys())):
            if names:
                raise SpecError(f"{source} {what} {len(names)} arrays of the optimiser: {sorted(names)[:5]}",
                                hint="opt, ema and loss_scale_type must be those of the checkpoint")  # fmt: skip
        for name, array in wanted.items():
            if arrays[name].shape != array.shape:
                raise SpecError(f"{source}: {name} has shape {arrays[name].shape}, the run wants {array.shape}")
        for name, moment in update.optimizer.moments.items():
            moment.set_data(Tensor(_joined(arrays, update.weights, f"{name}.")))
        for name, counter in update.counters.items():
            counter.set_data(Tensor(arrays[name]))
        if update.has_average:
            self._set_average(arrays)

    def start_average(self) -> None:
        """The EMA begins at what the network holds now; to be called once its first weights are set."""
        update = self._update
        if update.has_average:
            parameters = (*update.weights, *update.statistics)
            self._set_average({EMA_PREFIX + p.name: p.asnumpy() for p in parameters})

    def average(self) -> Arrays:
        """Copies of the EMA by the parameters' names; empty if none is kept."""
        update = self._update
        if not update.has_average:
            return {}
        return split(update.average.asnumpy().copy(), update.weights, "") | split(
            update.average_statistics.asnumpy().copy(), update.statistics, ""
        )

    def scale(self) -> float:
        """The loss scale that the next step begins with."""
        dynamic = self._update.loss_scale
        return float(dynamic.asnumpy()) if dynamic is not None else self._update.fixed_scale

    def _set_average(self, arrays: Arrays) -> None:
        update = self._update
        update.average.set_data(Tensor(_joined(arrays, update.weights, EMA_PREFIX)))
        if update.has_statistics:
            update.average_statistics.set_data(Tensor(_joined(arrays, update.statistics, EMA_PREFIX)))

    def __call__(self, micro_batches: list[tuple[Tensor, ...]], control: Tensor) -> tuple[Tensor, Tensor]:
        """(mean loss, number above 0 if a rank wants to stop); inputs of a micro-batch as `Gradient` takes them."""
        if self._is_whole:
            self._train(self._whole)
            loss, stop = self._whole(*micro_batches[0], control)
            return loss, stop
        self._train(self._accumulate)
        for i, inputs in enumerate(micro_batches):
            self._accumulate(*inputs, control, Tensor(i == 0))
        loss, stop = self._finish(control)
        return loss, stop

    def _train(self, cell: nn.Cell) -> None:
        """For training, if it is not already: that walks over all cells, which takes milliseconds."""
        if not (cell.training and self._network.training):
            cell.set_train(True)


def _joined(arrays: Arrays, parameters: Sequence[Parameter], prefix: str) -> np.ndarray[Any, Any]:
    return np.concatenate([arrays[prefix + p.name].ravel() for p in parameters])


def average_decay(decay: float, step: int) -> float:
    """EMA decay of the step with this index (from 0), smaller in the beginning: MindCV's decay * (1 - e^(-t/2000))."""
    return decay * (1 - math.exp(-(step + 1) / 2000))


class ShareStatistics(nn.Cell):  # type: ignore[misc]
    """Gives every rank the batch-norm statistics of rank 0: those of the checkpoint, and of every validation.

    A sum in which the others are zero: exact, since x + 0 is x.
    """

    def __init__(self, network: ReXNet, rank: int) -> None:
        super().__init__(auto_prefix=False)
        self.statistics = ParameterTuple([p for p in network.get_parameters() if not p.requires_grad])
        self.gather, self.scatter = Gather(), Scatter(self.statistics)
        self.mine = 1.0 if rank == 0 else 0.0
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def construct(self) -> Tensor:
        flat = self.reduce(self.gather(self.statistics) * self.mine)
        return ops.depend(flat, self.scatter(flat))


class SumOverRanks(nn.Cell):  # type: ignore[misc]
    """The sum of one number of each rank: a barrier that also says something."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def construct(self, value: Tensor) -> Tensor:
        return self.reduce(value)
