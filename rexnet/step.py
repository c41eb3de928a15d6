"""What runs on the device: the training step, the evaluation step, and a sum over ranks; graph mode, static shapes.

All ranks' gradients, the loss and the wish to stop travel in one all-reduce, so agreeing where to stop costs nothing.
"""

from __future__ import annotations

import itertools
import math

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from rexnet.model import ReXNet
from rexnet.recipe import Recipe

MOMENTUM_PREFIX = "momentum."


# Bare primitives mapped over tuples: the functional forms in a loop take minutes to compile for 227 gradients.
_concat, _slice, _reshape = ops.Concat(0), ops.Slice(), ops.Reshape()
_flatten = ops.MultitypeFuncGraph("flatten")
_cut = ops.MultitypeFuncGraph("cut")
_set = ops.MultitypeFuncGraph("set")
_apply = ops.MultitypeFuncGraph("apply")


@_flatten.register("Tensor")  # type: ignore[untyped-decorator]
def _flatten_one(tensor: Tensor) -> Tensor:
    return _reshape(tensor, (-1,))


@_cut.register("Tensor", "Number", "Number", "Tuple")  # type: ignore[untyped-decorator]
def _cut_one(flat: Tensor, start: int, end: int, shape: tuple[int, ...]) -> Tensor:
    """One gradient out of the flat vector of all."""
    return _reshape(_slice(flat, (start,), (end - start,)), shape)


@_set.register("Tensor", "Tensor", "Number", "Number")  # type: ignore[untyped-decorator]
def _set_one(flat: Tensor, statistic: Tensor, start: int, end: int) -> Tensor:
    """One moving statistic out of the flat vector of all."""
    return ops.assign(statistic, _slice(flat, (start,), (end - start,)))


@_apply.register("Function", "Number", "Tensor", "Number", "Bool", "Tensor", "Tensor", "Tensor")  # type: ignore[untyped-decorator]
def _apply_one(  # noqa: PLR0917  a mapped function takes its tensors by position
    update: ops.ApplyMomentum, coefficient: float, lr: Tensor, weight_decay: float,
    decayed: bool, weight: Tensor, velocity: Tensor, gradient: Tensor,
) -> Tensor:  # fmt: skip
    """One parameter's update."""
    if decayed:
        gradient = gradient + weight_decay * weight
    return update(weight, velocity, lr, gradient, coefficient)


class TrainStep(nn.Cell):  # type: ignore[misc]
    """One step of data-parallel SGD with momentum.

    Inputs: images (n, 3, h, w) float32, labels (n,) int32, mask (n, num_features) float32 (see `ReXNet.construct`),
    lr () float32, stop () float32, 1 if this rank wants to stop after the step. Returns the mean loss over all ranks
    and the number of ranks that want to stop, equal on all of them.

    The update is PyTorch's and MindCV's SGD: v = momentum * v + g, p -= lr * (g + momentum * v) with Nesterov; weight
    decay adds to g, for weights of convolutions and classifier only.
    """

    def __init__(self, network: ReXNet, recipe: Recipe, world_size: int) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.world_size = world_size
        self.weight_decay = recipe.weight_decay
        self.coefficient = recipe.momentum
        self.weights = ParameterTuple(network.trainable_params())
        self.velocity = ParameterTuple(
            [Parameter(ops.zeros_like(p), name=MOMENTUM_PREFIX + p.name, requires_grad=False) for p in self.weights]
        )
        self.decayed = tuple(len(p.shape) > 1 and recipe.weight_decay > 0 for p in self.weights)
        self.shapes = tuple(tuple(p.shape) for p in self.weights)
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.shapes))
        self.starts, self.ends = (0, *ends[:-1]), tuple(ends)
        self.map = ops.HyperMap()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.gradients = ms.value_and_grad(self._loss, None, self.weights)
        self.update = ops.ApplyMomentum(use_nesterov=recipe.use_nesterov)
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM) if world_size > 1 else ops.identity

    def construct(
        self, images: Tensor, labels: Tensor, mask: Tensor, lr: Tensor, stop: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, gradients = self.gradients(images, labels, mask)
        if self.world_size > 1:
            extra = (loss.reshape((1,)), stop.reshape((1,)))
            flat = _concat(self.map(_flatten, gradients) + extra)
            total = self.reduce(flat)
            mean = total / self.world_size
            gradients = self.map(ops.partial(_cut, mean), self.starts, self.ends, self.shapes)
            loss, stop = mean[self.ends[-1]], total[self.ends[-1] + 1]
        apply = ops.partial(_apply, self.update, self.coefficient, lr, self.weight_decay)
        done = self.map(apply, self.decayed, self.weights, self.velocity, gradients)
        loss = ops.depend(loss, done)
        return loss, stop

    def _loss(self, images: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return self.criterion(self.network(images, mask), labels)


class EvalStep(nn.Cell):  # type: ignore[misc]
    """Counts over one batch, summed over all ranks: [top-1 hits, top-5 hits, sum of losses, samples], float32 (4,).

    `weight` (n,) float32 is 1 for a sample and 0 for padding, so an uneven last batch counts exactly.
    """

    def __init__(self, network: ReXNet, num_classes: int, world_size: int) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.num_best = min(5, num_classes)
        self.criterion = nn.CrossEntropyLoss(reduction="none")
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM) if world_size > 1 else ops.identity
        self.world_size = world_size

    def construct(self, images: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        logits = self.network(images)
        _, best = ops.topk(logits, self.num_best)
        hits = (best == labels.reshape((-1, 1))).astype(ms.float32) * weight.reshape((-1, 1))
        losses = self.criterion(logits, labels) * weight
        counts = ops.stack((hits[:, 0].sum(), hits.sum(), losses.sum(), weight.sum()))
        if self.world_size > 1:
            counts = self.reduce(counts)
        return counts


class ShareStatistics(nn.Cell):  # type: ignore[misc]
    """Gives every rank the batch-norm statistics of rank 0: those of the checkpoint, and of every validation.

    A sum in which the others are zero: exact, since x + 0 is x.
    """

    def __init__(self, network: ReXNet, rank: int) -> None:
        super().__init__(auto_prefix=False)
        self.statistics = ParameterTuple([p for p in network.get_parameters() if not p.requires_grad])
        ends = list(itertools.accumulate(p.shape[0] for p in self.statistics))
        self.starts, self.ends = (0, *ends[:-1]), tuple(ends)
        self.map = ops.HyperMap()
        self.mine = 1.0 if rank == 0 else 0.0
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def construct(self) -> Tensor:
        flat = self.reduce(_concat(self.map(_flatten, self.statistics)) * self.mine)
        return ops.depend(flat, self.map(ops.partial(_set, flat), self.statistics, self.starts, self.ends))


class SumOverRanks(nn.Cell):  # type: ignore[misc]
    """The sum of one number of each rank: a barrier that also says something."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def construct(self, value: Tensor) -> Tensor:
        return self.reduce(value)
