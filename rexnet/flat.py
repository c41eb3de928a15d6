"""Many parameters as one vector, in the graph: what the update and the ranks' sums compute with.

With the kernels it is one operator each way; without, one or more for each of 227 parameters, which is most of what a
graph's compilation then takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from rexnet import kernels

ROW = 1024
_concat, _slice, _reshape = ops.Concat(0), ops.Slice(), ops.Reshape()
_flatten = ops.MultitypeFuncGraph("flatten")
_set = ops.MultitypeFuncGraph("set")


@_flatten.register("Tensor")  # type: ignore[untyped-decorator]
def _flatten_one(tensor: Tensor) -> Tensor:
    return _reshape(tensor, (-1,))


@_set.register("Tensor", "Tensor", "Number", "Number", "Tuple")  # type: ignore[untyped-decorator]
def _set_one(flat: Tensor, parameter: Tensor, start: int, size: int, shape: tuple[int, ...]) -> Tensor:
    return ops.assign(parameter, _reshape(_slice(flat, (start,), (size,)), shape))


def in_place(name: str) -> Any:
    """The kernels' function of that name that writes some of its inputs; None where the kernels do not serve.

    Its output is one number, for whoever has to come after it: MindSpore does not know what it writes.
    """
    library = kernels.library()
    if library is None:
        return None
    return ops.Custom(f"{library}:{name}", lambda *_: [1], lambda *_: ms.float32, func_type="aot")


class Gather(nn.Cell):  # type: ignore[misc]
    """A tuple of float32 tensors -> the vector of them one after the other."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        library = kernels.library()
        self.custom: Any = None
        if library is not None:
            self.custom = ops.Custom(
                f"{library}:gather_flat",
                lambda *shapes: [sum(math.prod(shape) for shape in shapes)],
                lambda *_: ms.float32,
                func_type="aot",
            )
        self.map = ops.HyperMap()

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        if self.custom is not None:
            return self.custom(*tensors)
        return _concat(self.map(_flatten, tensors))


class Scatter(nn.Cell):  # type: ignore[misc]
    """Sets these parameters from a vector of their lengths; returns what to depend on for being after it."""

    def __init__(self, parameters: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = parameters
        self.shapes = tuple(tuple(p.shape) for p in parameters)
        self.sizes = tuple(math.prod(shape) for shape in self.shapes)
        self.starts = (0, *itertools.accumulate(self.sizes[:-1]))
        self.custom = in_place("scatter_flat")
        self.map = ops.HyperMap()

    def construct(self, flat: Tensor) -> Any:
        if self.custom is not None:
            return self.custom(flat, *self.parameters)
        return self.map(ops.partial(_set, flat), self.parameters, self.starts, self.sizes, self.shapes)


class Average(nn.Cell):  # type: ignore[misc]
    """Moves `average` (k,), in place, towards parameters of k elements in all: decay * average + (1 - decay) * them.

    Returns what to depend on for being after it.
    """

    def __init__(self, average: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.average = average
        self.gather = Gather()
        self.custom = in_place("average_flat")

    def construct(self, parameters: tuple[Tensor, ...], decay: Tensor) -> Any:
        if self.custom is not None:
            return self.custom(self.average, decay, *parameters)
        return ops.assign(self.average, self.average * decay + self.gather(parameters) * (1 - decay))


def sum_of_squares(flat: Tensor, length: int) -> Tensor:
    """Of a vector of that length, in two stages, so that a row has one thread.

    MindSpore 2.10's CPU sum of a long vector tries other partitions from its sixth launch on, and with them another
    order of adding: a resumed run would part from an untouched one in the last bits (measured).
    """
    whole = length // ROW * ROW
    squares = flat * flat
    rest = squares[whole:].sum() if whole < length else 0.0
    return squares[:whole].reshape((-1, ROW)).sum(1).sum() + rest if whole else squares.sum()


def length_of(parameters: Sequence[Parameter]) -> int:
    return sum(math.prod(p.shape) for p in parameters)


def split(flat: Any, parameters: Sequence[Parameter], prefix: str) -> dict[str, Any]:
    """The parts of a NumPy vector by `prefix` and parameter name, as views of their shapes."""
    ends = itertools.accumulate(math.prod(p.shape) for p in parameters)
    return {
        prefix + p.name: flat[end - math.prod(p.shape) : end].reshape(p.shape)
        for p, end in zip(parameters, ends, strict=True)
    }
