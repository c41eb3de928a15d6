"""ReXNet (Han et al., "Rethinking Channel Dimensions for Efficient Model Design", arXiv 2007.00992) for MindSpore.

Parameter names and shapes are those of MindCV's `rexnet_09 .. rexnet_20`, so weights pass both ways. What differs is
how the same function is computed: on CPU each bottleneck is one operator of `rexnet.kernels`. Where those do not serve
(Ascend, no compiler) MindSpore's built-in ones do, which stand below as cells; on a CPU without compiler the depthwise
convolution is then a matrix product per channel on small maps, and the shortcut a concatenation.

Dropout and drop path are no layers here: their masks enter `construct` as inputs drawn on the host, because
`nn.Dropout` restarts its sequence with each process, and a resumed run would drop other units than an untouched one.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from jobs.errors import SpecError
from rexnet import kernels
from rexnet.architecture import MODELS, Block, blocks, gate_channels, last_channels
from rexnet.kernels.ops import bottleneck, first_block, head

LARGEST_MATRIX_MAP = 16  # pixels; beyond it the matrices outgrow what they save


def tap_matrix(size: int, stride: int) -> np.ndarray[Any, Any]:
    """Which input pixel each of the nine taps brings to which output pixel, padding 1.

    Shape (9, size**2 * rows**2) of zeros and ones, with rows = (size - 1) // stride + 1: a kernel (c, 9) times this is
    the convolution of each channel as a matrix from its input map to its output map.
    """
    rows = (size - 1) // stride + 1
    taps = np.zeros((3, 3, size, size, rows, rows), np.float32)
    for i, j, y, x in itertools.product(range(3), range(3), range(rows), range(rows)):
        source_y, source_x = y * stride + i - 1, x * stride + j - 1
        if 0 <= source_y < size and 0 <= source_x < size:
            taps[i, j, source_y, source_x, y, x] = 1
    return taps.reshape(9, size**2 * rows**2)


def hold(cell: nn.Cell, **parameters: list[Parameter]) -> None:
    """Give the cell other cells' parameters to compute with; by plain assignment they would become its own."""
    for name, values in parameters.items():
        object.__setattr__(cell, name, ParameterTuple(values))


class DepthwiseConv3x3(nn.Cell):  # type: ignore[misc]
    """Depthwise 3x3 convolution with padding 1, weight (c, 1, 3, 3), for square maps of `size` pixels.

    Up to 16 pixels it is one matrix product per channel, else the built-in convolution; both compute the same sums
    (gradients agree to 5e-7 relative). Measured with gradient on one core at batch 32: 300 channels of 4x4 pixels 6.4
    instead of 25.8 ms, 900 of 1x1 2.7 instead of 25.5 ms, 32 of 16x16 17 instead of 27 ms.
    """

    def __init__(self, channels: int, stride: int, size: int) -> None:
        super().__init__()
        self.weight = Parameter(ops.zeros((channels, 1, 3, 3)), name="weight")
        self.channels, self.size, self.rows = channels, size, (size - 1) // stride + 1
        self.as_matrix = size <= LARGEST_MATRIX_MAP and ms.get_context("device_target") == "CPU"
        self.taps = ms.Tensor(tap_matrix(size, stride)) if self.as_matrix else None
        self.conv = ops.Conv2D(channels, 3, pad_mode="pad", pad=1, stride=stride, group=channels)

    def construct(self, x: Tensor) -> Tensor:
        if not self.as_matrix:
            return self.conv(x, self.weight)
        if self.size == 1:  # every other tap sees padding only
            return x * self.weight[:, 0, 1, 1].reshape((1, self.channels, 1, 1))
        batch = x.shape[0]
        kernel = self.weight.reshape((self.channels, 9))
        matrices = ops.matmul(kernel, self.taps).reshape((self.channels, self.size**2, self.rows**2))
        maps = x.reshape((batch, self.channels, self.size**2)).transpose((1, 0, 2))
        return ops.bmm(maps, matrices).transpose((1, 0, 2)).reshape((batch, self.channels, self.rows, self.rows))


class ConvNorm(nn.Cell):  # type: ignore[misc]
    """Convolution, batch norm and optionally SiLU; MindCV's `Conv2dNormActivation`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, act: bool = False
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, pad_mode="pad", padding=kernel // 2, weight_init="zeros"
        )
        self.features = nn.SequentialCell([conv, nn.BatchNorm2d(out_channels)] + ([nn.SiLU()] if act else []))

    def construct(self, x: Tensor) -> Tensor:
        return self.features(x)

    def kernel_inputs(self) -> list[Parameter]:
        """The parameters in the order of `rexnet.kernels.ops`."""
        conv, norm = self.features[0], self.features[1]
        return [conv.weight, norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance]


class DepthwiseNorm(ConvNorm):
    """Depthwise convolution and batch norm under MindCV's names."""

    def __init__(self, channels: int, stride: int, size: int) -> None:
        nn.Cell.__init__(self)
        self.features = nn.SequentialCell([DepthwiseConv3x3(channels, stride, size), nn.BatchNorm2d(channels)])


class SqueezeExcite(nn.Cell):  # type: ignore[misc]
    """Channel gate from the global mean (arXiv 1709.01507), with the batch norm that ReXNet puts inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = gate_channels(channels)
        self.conv_reduce = nn.Conv2d(channels, reduced, 1, has_bias=True, weight_init="zeros", bias_init="zeros")
        self.bn = nn.BatchNorm2d(reduced)
        self.conv_expand = nn.Conv2d(reduced, channels, 1, has_bias=True, weight_init="zeros", bias_init="zeros")

    def construct(self, x: Tensor) -> Tensor:
        gate = self.conv_reduce(x.mean((2, 3), True))
        return x * ops.sigmoid(self.conv_expand(ops.relu(self.bn(gate))))

    def kernel_inputs(self) -> list[Parameter]:
        """The parameters in the order of `rexnet.kernels.ops`."""
        norm = [self.bn.gamma, self.bn.beta, self.bn.moving_mean, self.bn.moving_variance]
        reduce, expand = self.conv_reduce, self.conv_expand
        return [reduce.weight, reduce.bias, *norm, expand.weight, expand.bias]


class LinearBottleneck(nn.Cell):  # type: ignore[misc]
    """Expand, depthwise, gate, project; the shortcut is added to the first `before` channels of the output alone."""

    def __init__(self, block: Block, *, size: int, path: int) -> None:
        super().__init__()
        self.path = path  # the block's column of `paths`, or -1: never dropped
        self.stride, self.gated, self.fused = block.stride, block.gated, False
        self.shortcut = block.has_shortcut
        self.in_channels, self.grows = block.before, block.after > block.before
        self.conv_exp = ConvNorm(block.before, block.channels, act=True) if block.expands else nn.Identity()
        self.conv_dw = DepthwiseNorm(block.channels, block.stride, size)
        self.se = SqueezeExcite(block.channels) if block.gated else nn.Identity()
        self.conv_pwl = ConvNorm(block.channels, block.after)

    def fuse(self, library: Path) -> None:
        """From now on the block is one operator, on panel tensors."""
        convs = [p for cell in (self.conv_exp, self.conv_dw, self.conv_pwl) for p in cell.kernel_inputs()]
        hold(self, kernel_inputs=convs + (self.se.kernel_inputs() if self.gated else []))
        self.train_kernel = bottleneck(library, stride=self.stride, gated=self.gated, training=True)
        self.eval_kernel = bottleneck(library, stride=self.stride, gated=self.gated, training=False)
        self.fused = True

    def construct(self, x: Tensor, paths: Tensor | None) -> Tensor:
        if self.fused:
            scale = ops.ones((x.shape[1],), ms.float32)
            if paths is not None and self.path >= 0:
                scale = paths[:, self.path]
            if self.training:
                return self.train_kernel(x, scale, *self.kernel_inputs)[0]
            return self.eval_kernel(x, scale, *self.kernel_inputs)
        out = self.conv_pwl(ops.relu6(self.se(self.conv_dw(self.conv_exp(x)))))
        if not self.shortcut:
            return out
        if paths is not None and self.path >= 0:
            out = out * paths[:, self.path].reshape((-1, 1, 1, 1))
        if not self.grows:
            return out + x
        return ops.concat((out[:, : self.in_channels] + x, out[:, self.in_channels :]), 1)


class ReXNet(nn.Cell):  # type: ignore[misc]
    """ReXNet of the given width: images (n, 3, image_size, image_size) float32 -> logits (n, num_classes).

    `path_rates` are the rates at which the blocks that can be dropped are (stochastic depth, arXiv 1603.09382): block
    i of 16 at drop_path_rate * i / 15 where that is above 0 and the block has a shortcut.
    """

    def __init__(self, width: float, num_classes: int, image_size: int, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        shape = blocks(width)
        bottlenecks: list[nn.Cell] = []
        rates: list[float] = []
        size = (image_size - 1) // 2 + 1
        for i, block in enumerate(shape):
            rate = drop_path_rate * i / (len(shape) - 1)
            droppable = rate > 0 and block.has_shortcut
            bottlenecks.append(LinearBottleneck(block, size=size, path=len(rates) if droppable else -1))
            rates += [rate] if droppable else []
            size = (size - 1) // block.stride + 1
        self.path_rates, self.num_blocks = tuple(rates), len(shape)
        self.num_features = last_channels(width)
        self.stem = ConvNorm(3, shape[0].before, kernel=3, stride=2, act=True)
        self.features = nn.SequentialCell([*bottlenecks, ConvNorm(shape[-1].after, self.num_features, act=True)])
        # Index 0 is MindCV's dropout, which has no parameters: it keeps the classifier's name `cls.1`.
        classifier = nn.Dense(self.num_features, num_classes, weight_init="zeros", bias_init="zeros")
        self.cls = nn.SequentialCell([nn.Identity(), classifier])
        library = kernels.library() if ms.get_context("device_target") == "CPU" else None
        self.fused = library is not None
        if library is not None:
            self._fuse(library)

    def _fuse(self, library: Path) -> None:
        """Stem with first block, each further block, and last convolution with pooling become one operator each."""
        for i in range(1, self.num_blocks):
            self.features[i].fuse(library)
        first = self.features[0]
        cells = (self.stem, first.conv_dw, first.conv_pwl)
        hold(self, first_inputs=[p for cell in cells for p in cell.kernel_inputs()])
        self.first_train, self.first_eval = (first_block(library, training=training) for training in (True, False))
        hold(self, head_inputs=self.features[-1].kernel_inputs())
        self.head_train, self.head_eval = (head(library, training=training) for training in (True, False))

    def kernel_inputs(self) -> list[Parameter]:
        """All parameters in the order of the operators; where they serve."""
        bottlenecks = (self.features[i].kernel_inputs for i in range(1, self.num_blocks))
        classifier = (self.cls[1].weight, self.cls[1].bias)
        return list(itertools.chain(self.first_inputs, *bottlenecks, self.head_inputs, classifier))

    def kernel_plan(self, weights: ParameterTuple, *, drops: bool, mixes: bool) -> np.ndarray[Any, Any]:
        """What `kernels/src/network.h` is told: whether there is dropout, and mixup; how many blocks, and of each its
        stride, gate, column of `paths` or -1; where in a vector of `weights` each of `kernel_inputs` begins, or -1.
        """
        bottlenecks = [self.features[i] for i in range(self.num_blocks)]
        each = [(block.stride, block.gated, block.path) for block in bottlenecks]
        starts = itertools.accumulate((math.prod(p.shape) for p in weights), initial=0)
        places = dict(zip((p.name for p in weights), starts, strict=False))  # the last start is the vector's end
        offsets = [places.get(parameter.name, -1) for parameter in self.kernel_inputs()]
        return np.array([drops, mixes, self.num_blocks, *itertools.chain(*each), *offsets], np.int32)

    def construct(self, x: Tensor, mask: Tensor | None = None, paths: Tensor | None = None) -> Tensor:
        """`mask` (n, num_features) holds 0 or 1 / (1 - drop_rate), or is None: nothing is dropped.

        `paths` (n, len(path_rates)) float32 holds for each sample and droppable block 0 or 1 / (1 - its rate), or is
        None: no block is dropped.
        """
        pooled = self._fused_features(x, paths) if self.fused else self._features(x, paths)
        if mask is not None:
            pooled = pooled * mask
        return self.cls(pooled)

    def _features(self, x: Tensor, paths: Tensor | None) -> Tensor:
        x = self.stem(x)
        for i in range(self.num_blocks):  # a slice of the SequentialCell would rename its parameters
            x = self.features[i](x, paths)
        return self.features[-1](x).mean((2, 3))

    def _fused_features(self, x: Tensor, paths: Tensor | None) -> Tensor:
        x = self.first_train(x, *self.first_inputs)[0] if self.training else self.first_eval(x, *self.first_inputs)
        for i in range(1, self.num_blocks):
            x = self.features[i](x, paths)
        return self.head_train(x, *self.head_inputs)[0] if self.training else self.head_eval(x, *self.head_inputs)


def initial_value(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """First value of a parameter, a pure function of (seed, name, shape), so all ranks start equal without a word.

    Weights are He-uniform with a = sqrt(5), that is U(-b, b) with b = 1 / sqrt(fan_in), as MindCV has them; biases
    and shifts are 0, scales and variances 1.
    """
    if len(shape) < 2:
        one = name.endswith((".gamma", ".moving_variance"))
        return np.ones(shape, np.float32) if one else np.zeros(shape, np.float32)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.Philox(key=[seed, key]))
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return generator.uniform(-bound, bound, shape).astype(np.float32)


def create_model(name: str, *, num_classes: int, image_size: int, seed: int, drop_path_rate: float = 0.0) -> ReXNet:
    """The model of that MindCV name with its first values. SpecError if there is none."""
    if name not in MODELS:
        raise SpecError(f"model: no model {name!r}", hint=f"there are {', '.join(MODELS)}")
    network = ReXNet(MODELS[name], num_classes, image_size, drop_path_rate)
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(initial_value(parameter.name, tuple(parameter.shape), seed)))
    return network
