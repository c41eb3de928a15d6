"""The model has MindCV's parameters, and its depthwise convolution is one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    import mindspore as ms
    from mindspore import nn, ops

    from rexnet.model import DepthwiseConv3x3, create_model, initial_value

from rexnet.architecture import blocks

pytestmark = pytest.mark.filterwarnings("ignore")


def expected_names() -> set[str]:
    """Written out after MindCV's rexnet.py, independently of ours."""
    norm = ("gamma", "beta", "moving_mean", "moving_variance")

    def conv_norm(prefix: str) -> set[str]:
        return {f"{prefix}.features.0.weight"} | {f"{prefix}.features.1.{name}" for name in norm}

    names = conv_norm("stem") | conv_norm("features.16") | {"cls.1.weight", "cls.1.bias"}
    for block in range(16):
        names |= conv_norm(f"features.{block}.conv_dw") | conv_norm(f"features.{block}.conv_pwl")
        if block > 0:
            names |= conv_norm(f"features.{block}.conv_exp")
        if block >= 5 - 2:
            names |= {f"features.{block}.se.bn.{name}" for name in norm}
            names |= {
                f"features.{block}.se.{conv}.{name}"
                for conv in ("conv_reduce", "conv_expand")
                for name in ("weight", "bias")
            }
    return names


def test_names_and_shapes_are_mindcvs() -> None:
    model = create_model("rexnet_09", num_classes=1000, image_size=224, seed=0)
    shapes = {parameter.name: tuple(parameter.shape) for parameter in model.get_parameters()}
    names = expected_names()
    se_from = min(int(name.split(".")[1]) for name in shapes if ".se." in name)
    assert se_from == 3  # stages of 1 and 2 blocks have none, and neither has the second of stride 2
    assert set(shapes) == names
    assert shapes["stem.features.0.weight"] == (32, 3, 3, 3)
    assert shapes["features.0.conv_dw.features.0.weight"] == (32, 1, 3, 3)
    assert shapes["features.16.features.0.weight"] == (1152, 168, 1, 1)  # round(16 + 0.9 * 180 * 15 / 16)
    assert shapes["cls.1.weight"] == (1000, 1152)
    trainable = sum(parameter.size for parameter in model.trainable_params())
    assert 4.0e6 < trainable < 4.2e6  # the authors say 4.1 M


@pytest.mark.parametrize(("width", "last"), [(0.9, 1152), (1.0, 1280), (1.3, 1664), (1.5, 1920), (2.0, 2560)])
def test_every_width_constructs(width: float, last: int) -> None:
    model = create_model(f"rexnet_{round(width * 10):02d}", num_classes=10, image_size=32, seed=0)
    assert model.num_features == last
    assert len(blocks(width)) == model.num_blocks == 16


def test_first_values_depend_on_seed_and_name_alone() -> None:
    one = initial_value("a.weight", (8, 4, 1, 1), 5)
    assert np.array_equal(one, initial_value("a.weight", (8, 4, 1, 1), 5))
    assert not np.array_equal(one, initial_value("b.weight", (8, 4, 1, 1), 5))
    assert not np.array_equal(one, initial_value("a.weight", (8, 4, 1, 1), 6))
    assert abs(one).max() <= 0.5


class Square(nn.Cell):  # type: ignore[misc]
    def __init__(self, cell: Any) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell

    def construct(self, x: Any) -> Any:
        return (self.cell(x) ** 2).sum()


class SquareGradient(nn.Cell):  # type: ignore[misc]
    """Gradients of the sum of squares of the cell's output: ((input,), (weight,))."""

    def __init__(self, cell: Any) -> None:
        super().__init__(auto_prefix=False)
        self.square, self.weights = Square(cell), ms.ParameterTuple(cell.trainable_params())
        self.gradient = ops.GradOperation(get_all=True, get_by_list=True)

    def construct(self, x: Any) -> Any:
        return self.gradient(self.square, self.weights)(x)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (2, 2), (5, 2), (8, 1), (16, 2)])
def test_depthwise_equals_the_built_in_convolution_with_its_gradients(size: int, stride: int) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    random = np.random.default_rng(0)
    channels = 6
    x = ms.Tensor(random.standard_normal((3, channels, size, size)).astype(np.float32))
    weight = ms.Tensor(random.standard_normal((channels, 1, 3, 3)).astype(np.float32))
    cells = [
        DepthwiseConv3x3(channels, stride, size),
        nn.Conv2d(channels, channels, 3, stride, pad_mode="pad", padding=1, group=channels),
    ]
    results = []
    for cell in cells:
        cell.weight.set_data(weight)
        (to_input,), (to_weight,) = SquareGradient(cell)(x)
        results.append([cell(x).asnumpy(), to_input.asnumpy(), to_weight.asnumpy()])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
