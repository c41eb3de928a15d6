"""The kernels as MindSpore operators: shapes, types and gradients of `ops.Custom` around the library's functions.

Activations between them are panel tensors (ceil(c / 8), n, h, w, 8), see `src/gemm.h`. The operators of training move
the batch norms' moving statistics in place, as MindSpore's own BatchNorm does. Each operator is made once in a process:
MindSpore keeps what it derives from one, the gradient above all, under the function's name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import ops

Shape = list[int]
LANES = 8
# Parameters of a convolution: weight, gamma, beta, moving_mean, moving_variance; of a gate: reduce weight and bias,
# gamma, beta, moving_mean, moving_variance, expand weight and bias.
CONV_INPUTS = 5


def panels(channels: int) -> int:
    """How many panels of eight channels hold so many."""
    return -(-channels // LANES)


def custom(library: Path, name: str, shape: Callable[..., Any], outputs: int, bprop: Any = None) -> ops.Custom:
    """The library's function of that name, all of whose `outputs` are float32; one output is no tuple."""
    types = ms.float32 if outputs == 1 else (ms.float32,) * outputs
    return ops.Custom(f"{library}:{name}", shape, lambda *_: types, func_type="aot", bprop=bprop)


def block_shapes(parameters: tuple[Shape, ...], images: Shape, stride: int) -> tuple[Shape, ...]:
    """y, e, d, o and what else is kept for the gradient, of a bottleneck whose maps are `images` = [n, h, w]."""
    convs, gate = parameters[: 3 * CONV_INPUTS], parameters[3 * CONV_INPUTS :]
    wide, out, (n, h, w) = panels(convs[0][0]), panels(convs[2 * CONV_INPUTS][0]), images
    rows, columns = (h - 1) // stride + 1, (w - 1) // stride + 1
    kept = 4 * wide + 2 * out
    if gate:
        reduced = panels(gate[0][0])
        kept += 2 * reduced + n * (2 * wide + reduced)
    y = [out, n, rows, columns, LANES]
    return y, [wide, n, h, w, LANES], [wide, n, rows, columns, LANES], y, [kept * LANES]


@functools.cache
def first_block(library: Path, *, training: bool) -> ops.Custom:
    """Stem and first bottleneck: images (n, 3, h, w) and 15 parameters -> panels (and what is kept, in training)."""

    def shape(images: Shape, *parameters: Shape) -> Any:
        n, _, h, w = images
        shapes = block_shapes(parameters, [n, (h - 1) // 2 + 1, (w - 1) // 2 + 1], 1)
        return shapes if training else shapes[0]

    if not training:
        return custom(library, "first_eval", shape, 1)
    gradient = custom(library, "first_grad", lambda *shapes: tuple(shapes[6:15]), 9)

    def bprop(  # noqa: PLR0917  MindSpore takes no variable arguments here
        x: Any, w1: Any, g1: Any, b1: Any, m1: Any, v1: Any, w2: Any, g2: Any, b2: Any, m2: Any, v2: Any, w3: Any,
        g3: Any, b3: Any, m3: Any, v3: Any, out: Any, dout: Any,
    ) -> Any:  # fmt: skip
        p = (w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, w3, g3, b3, m3, v3)
        d = gradient(dout[0], x, *out[1:], *p[0:3], *p[5:8], *p[10:13])
        return (ops.zeros_like(x), *of_convs(d, p))

    return custom(library, "first_train", shape, 5, bprop)


def of_convs(d: Any, p: Any) -> Any:
    """The gradients of three convolutions' parameters `p`: those in `d`, and none for moving statistics."""
    zero = ops.zeros_like
    return (*d[0:3], zero(p[3]), zero(p[4]), *d[3:6], zero(p[8]), zero(p[9]), *d[6:9], zero(p[13]), zero(p[14]))


@functools.cache
def bottleneck(library: Path, *, stride: int, gated: bool, training: bool) -> ops.Custom:
    """A bottleneck: panels, scale (n,) of its output before the shortcut, 15 or 23 parameters -> panels (and more)."""
    name = f"{'gated' if gated else 'plain'}{stride}"

    def shape(x: Shape, _: Shape, *parameters: Shape) -> Any:
        shapes = block_shapes(parameters, x[1:4], stride)
        return shapes if training else shapes[0]

    if not training:
        return custom(library, f"{name}_eval", shape, 1)

    def gradient_shape(_: Shape, x: Shape, *others: Shape) -> Any:
        convs, gate = others[5:14], others[14:]
        return (x, *convs) if not gate else (x, *convs, gate[0], gate[1], gate[1], gate[1], gate[3], [gate[3][0]])

    gradient = custom(library, f"{name}_grad", gradient_shape, 16 if gated else 10)

    def bprop(  # noqa: PLR0917
        x: Any, scale: Any, w1: Any, g1: Any, b1: Any, m1: Any, v1: Any, w2: Any, g2: Any, b2: Any, m2: Any, v2: Any,
        w3: Any, g3: Any, b3: Any, m3: Any, v3: Any, out: Any, dout: Any,
    ) -> Any:  # fmt: skip
        p = (w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, w3, g3, b3, m3, v3)
        d = gradient(dout[0], x, scale, *out[1:], *p[0:3], *p[5:8], *p[10:13])
        return (d[0], ops.zeros_like(scale), *of_convs(d[1:], p))

    def gated_bprop(  # noqa: PLR0917
        x: Any, scale: Any, w1: Any, g1: Any, b1: Any, m1: Any, v1: Any, w2: Any, g2: Any, b2: Any, m2: Any, v2: Any,
        w3: Any, g3: Any, b3: Any, m3: Any, v3: Any, wr: Any, br: Any, gr: Any, sr: Any, mr: Any, vr: Any, we: Any,
        be: Any, out: Any, dout: Any,
    ) -> Any:  # fmt: skip
        p = (w1, g1, b1, m1, v1, w2, g2, b2, m2, v2, w3, g3, b3, m3, v3)
        d = gradient(dout[0], x, scale, *out[1:], *p[0:3], *p[5:8], *p[10:13], wr, gr, sr, we)
        zero = ops.zeros_like
        return (d[0], zero(scale), *of_convs(d[1:10], p), *d[10:14], zero(mr), zero(vr), *d[14:16])

    return custom(library, f"{name}_train", shape, 5, gated_bprop if gated else bprop)


@functools.cache
def head(library: Path, *, training: bool) -> ops.Custom:
    """Last convolution and mean over pixels: panels and 5 parameters -> (n, channels) (and what is kept)."""

    def shape(x: Shape, weight: Shape, *_: Shape) -> Any:
        pooled, wide = [x[1], weight[0]], panels(weight[0])
        return (pooled, [wide, *x[1:]], [2 * wide * LANES]) if training else pooled

    if not training:
        return custom(library, "head_eval", shape, 1)
    gradient = custom(library, "head_grad", lambda _, x, e, kept, *convs: (x, *convs), 4)

    def bprop(x: Any, w: Any, g: Any, b: Any, m: Any, v: Any, out: Any, dout: Any) -> Any:  # noqa: PLR0917
        d = gradient(dout[0], x, *out[1:], w, g, b)
        return (*d, ops.zeros_like(m), ops.zeros_like(v))

    return custom(library, "head_train", shape, 3, bprop)


def network_gradient(library: Path, length: int) -> ops.Custom:
    """A whole training pass: images (n, 3, h, w), labels and other labels (n,) int32, mask (n, features), paths (n,
    number of them), control (4,), scale of the loss (), (smoothing,), plan (int32) and all parameters -> (length + 2,):
    the gradients of the scaled loss, that loss, and control's wish to stop. `src/network.h` reads them.
    """
    return ops.Custom(f"{library}:network_gradient", lambda *_: [length + 2], lambda *_: ms.float32, func_type="aot")
