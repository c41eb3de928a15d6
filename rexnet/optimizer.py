"""The update: from the vector of all gradients to new weights, in the graph.

Everything is one vector over all weights, so an optimiser is a few operators whatever the number of layers; with the
kernels SGD is a single one, which moves velocities and weights where they lie. Each takes
`go` () float32, 1 to update and 0 to change nothing at all (an overflow under loss scaling). `moments` are its vectors
by name, `counters` its single numbers: all of it is in every checkpoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from rexnet.flat import Gather, Scatter, in_place
from rexnet.recipe import Recipe

BETA1, BETA2 = 0.9, 0.999  # MindCV's and everybody's


def decay_of(name: str, recipe: Recipe) -> float:
    """Weight decay of a parameter: MindCV's three filters. "auto" is what MindSpore does by itself: none on norms."""
    is_norm, is_bias = name.endswith((".gamma", ".beta")), name.endswith(".bias")
    spared = {"disable": False, "auto": is_norm, "norm_and_bias": is_norm or is_bias}[recipe.weight_decay_filter]
    return 0.0 if spared else recipe.weight_decay


class Optimizer(nn.Cell):  # type: ignore[misc]
    """Base. construct(gradients (k or more,), divisor (), lr (), go ()) sets the weights, k numbers in all, from the
    first k of gradients / divisor. Returns what to depend on for being after it.
    """

    def __init__(self, weights: ParameterTuple, recipe: Recipe) -> None:
        super().__init__(auto_prefix=False)
        self.weights, self.gather, self.scatter = weights, Gather(), Scatter(weights)
        decays = np.concatenate([np.full(p.size, decay_of(p.name, recipe), np.float32) for p in weights])
        self.decays_all = bool((decays == decays[0]).all())
        self.decay = float(decays[0])
        if not self.decays_all:  # a Parameter, since a constant of this size would be written into the cached graph
            self.decays = Parameter(Tensor(decays), name="weight_decays", requires_grad=False)
        self.length = len(decays)
        self.moments: dict[str, Parameter] = {}
        self.counters: dict[str, Parameter] = {}

    def moment(self, name: str) -> Parameter:
        """A vector of zeros that a checkpoint knows as `name`."""
        made = Parameter(Tensor(np.zeros(self.length, np.float32)), name=name, requires_grad=False)
        self.moments[name] = made
        return made

    def decayed(self, change: Tensor, weights: Tensor) -> Tensor:
        """`change` with weight decay added."""
        if not self.decays_all:
            return change + self.decays * weights
        return change + self.decay * weights if self.decay > 0 else change


class Sgd(Optimizer):
    """SGD with momentum as PyTorch and MindCV have it: decay adds to g, v = momentum * v + g, p -= lr * v, or
    lr * (g + momentum * v) with Nesterov. (MindSpore 2.10's ApplyMomentum ignores `use_nesterov` on CPU: measured.)
    """

    def __init__(self, weights: ParameterTuple, recipe: Recipe) -> None:
        super().__init__(weights, recipe)
        self.velocity = self.moment("momentum")
        self.momentum, self.nesterov = recipe.momentum, recipe.use_nesterov
        self.custom = in_place("sgd_update")
        self.settings = Tensor(np.array([self.momentum, self.nesterov], np.float32))
        self.given_decays = Tensor(np.array([self.decay], np.float32)) if self.decays_all else self.decays

    def construct(self, gradients: Tensor, divisor: Tensor, lr: Tensor, go: Tensor) -> Any:
        if self.custom is not None:
            given = (gradients, divisor, lr, go, self.settings, self.given_decays, self.velocity)
            return self.custom(*given, *self.weights)
        weights = self.gather(self.weights)
        gradient = self.decayed(gradients[: self.length] / divisor, weights)
        kept = 1 - go * (1 - self.momentum)
        velocity = ops.assign(self.velocity, kept * self.velocity + go * gradient)
        change = gradient + self.momentum * velocity if self.nesterov else velocity
        return self.scatter(weights - lr * go * change)


class Adam(Optimizer):
    """Adam (Kingma and Ba, arXiv 1412.6980), or AdamW (arXiv 1711.05101) if `opt` says so.

    It counts its own updates, since skipped ones do not count.
    """

    def __init__(self, weights: ParameterTuple, recipe: Recipe) -> None:
        super().__init__(weights, recipe)
        self.mean, self.square = self.moment("adam_mean"), self.moment("adam_square")
        self.updates = Parameter(Tensor(0, mstype.float32), name="adam_updates", requires_grad=False)
        self.counters["adam_updates"] = self.updates
        self.eps = recipe.eps
        self.decoupled = recipe.opt == "adamw"

    def construct(self, gradients: Tensor, divisor: Tensor, lr: Tensor, go: Tensor) -> Any:
        weights, gradient = self.gather(self.weights), gradients[: self.length] / divisor
        if not self.decoupled:
            gradient = self.decayed(gradient, weights)
        count = ops.maximum(ops.assign_add(self.updates, go), ops.ones_like(go))
        mean = ops.assign(self.mean, self.mean + go * (1 - BETA1) * (gradient - self.mean))
        square = ops.assign(self.square, self.square + go * (1 - BETA2) * (gradient * gradient - self.square))
        change = mean / (1 - ops.pow(BETA1, count)) / (ops.sqrt(square / (1 - ops.pow(BETA2, count))) + self.eps)
        if self.decoupled:
            change = self.decayed(change, weights)
        return self.scatter(weights - lr * go * change)


def create_optimizer(weights: ParameterTuple, recipe: Recipe) -> Optimizer:
    """The optimiser that the recipe names. "sgd" and "momentum" are one thing."""
    return Adam(weights, recipe) if recipe.opt in ("adam", "adamw") else Sgd(weights, recipe)
