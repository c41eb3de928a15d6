"""What a ReXNet costs, from its description alone and without MindSpore: parameters, multiply-adds, memory.

The tests hold the sums against the model itself and against the published figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rexnet.architecture import MODELS, blocks, gate_channels, last_channels
from rexnet.recipe import Recipe

FLOAT32, FLOAT16 = 4, 2  # bytes
_STATE_COPIES = {"sgd": 1, "momentum": 1, "adam": 2, "adamw": 2}  # arrays of the weights' size that an optimiser keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """`trainable` and `statistics` count numbers (the latter batch norm's moving ones); the rest is per image.

    `multiply_adds` count convolutions and the classifier, as the paper's FLOPs do; `activations` the numbers kept for
    the backward pass: each layer's output once (convolution, norm, activation, gate), nothing shared. Our CPU kernels
    keep `fused_activations` instead: of each block its output and that of its three convolutions, of the last
    convolution its output, channels rounded up to eight (rexnet/kernels/ops.py).
    """

    trainable: int = 0
    statistics: int = 0
    multiply_adds: int = 0
    activations: int = 0
    fused_activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            trainable=self.trainable + other.trainable,
            statistics=self.statistics + other.statistics,
            multiply_adds=self.multiply_adds + other.multiply_adds,
            activations=self.activations + other.activations,
            fused_activations=self.fused_activations + other.fused_activations,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one device while training; what the framework adds (workspaces, graphs) is not in it."""

    parameters: int
    gradients: int
    optimiser: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimiser + self.ema + self.activations


def cost_of(model: str, *, num_classes: int, image_size: int) -> Cost:
    """The whole model's cost for square images of that size."""
    return sum(_layers(MODELS[model], num_classes, image_size), Cost())


def memory_of(recipe: Recipe, *, accumulation: int, half: bool = False, fused: bool = False) -> Memory:
    """One device's memory for `batch_size` images at a time; `half`: activations in float16 (amp O2, O3 on Ascend);
    `fused`: with our CPU kernels.

    Gradients exist once more as the flat vector that is summed over ranks, and once more as the sum of micro-batches.
    """
    cost = cost_of(recipe.model, num_classes=recipe.num_classes, image_size=recipe.image_resize)
    whole = cost.trainable + cost.statistics
    return Memory(
        parameters=FLOAT32 * whole,
        gradients=FLOAT32 * cost.trainable * (3 if accumulation > 1 else 2),
        optimiser=FLOAT32 * cost.trainable * _STATE_COPIES[recipe.opt],
        ema=FLOAT32 * whole if recipe.ema else 0,
        activations=(FLOAT16 if half else FLOAT32)
        * recipe.batch_size
        * (cost.fused_activations if fused else cost.activations),
    )


def _layers(width: float, num_classes: int, image_size: int) -> Iterator[Cost]:
    shape, last = blocks(width), last_channels(width)
    size = _half(image_size)
    yield _conv_norm(3, shape[0].before, 3, size, activation=True)
    for block in shape:
        if block.expands:
            yield _conv_norm(block.before, block.channels, 1, size, activation=True)
        size_in, size = size, _half(size) if block.stride == 2 else size
        yield _conv_norm(1, block.channels, 3, size, activation=False)
        if block.gated:
            yield _gate(block.channels, size)
        yield Cost(activations=block.channels * size**2)  # ReLU6
        yield _conv_norm(block.channels, block.after, 1, size, activation=False)
        yield Cost(fused_activations=_up(block.channels) * (size_in**2 + size**2) + 2 * _up(block.after) * size**2)
        if block.has_shortcut:
            yield Cost(activations=block.after * size**2)  # sum with the shortcut
    yield _conv_norm(shape[-1].after, last, 1, size, activation=True)
    yield Cost(
        trainable=last * num_classes + num_classes, multiply_adds=last * num_classes, activations=last + num_classes
    )
    yield Cost(fused_activations=_up(last) * size**2)


def _conv_norm(fan: int, channels: int, kernel: int, size: int, *, activation: bool) -> Cost:
    """Convolution from `fan` input channels a group, batch norm and perhaps SiLU; `size` is the output's."""
    weights, pixels = fan * channels * kernel**2, size**2
    return Cost(
        trainable=weights + 2 * channels,
        statistics=2 * channels,
        multiply_adds=weights * pixels,
        activations=channels * pixels * (3 if activation else 2),
    )


def _gate(channels: int, size: int) -> Cost:
    """Squeeze and excite: two 1x1 convolutions with biases around a batch norm, then the product with the maps."""
    reduced = gate_channels(channels)
    return Cost(
        trainable=2 * channels * reduced + reduced + channels + 2 * reduced,
        statistics=2 * reduced,
        multiply_adds=2 * channels * reduced,
        activations=3 * channels + 3 * reduced + channels * size**2,
    )


def _half(size: int) -> int:
    """Output size of a stride of 2 with a 3x3 kernel and padding 1."""
    return (size - 1) // 2 + 1


def _up(channels: int) -> int:
    """Channels in whole panels of eight."""
    return -(-channels // 8) * 8
