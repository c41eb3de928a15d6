"""A training step of ReXNet 0.9, ours beside the same network with MindSpore's built-in depthwise convolutions.

Graph mode, float32, one process on all CPUs, the quickstart's 24 px images at batch 32. Each pair is the mean of ten
steps of either, in turn, in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.pairs import Result, in_turn

_BATCH, _SIZE, _STEPS = 32, 24, 10


def run() -> list[Result]:
    ours, builtin = make_step(as_matrix=True), make_step(as_matrix=False)
    note = f"ReXNet 0.9, {_BATCH} images of {_SIZE} px, with gradient and update"
    return [Result(name="training step", peer="built-in depthwise", pairs=in_turn(ours, builtin), note=note)]


def make_step(*, as_matrix: bool) -> Callable[[], float]:
    """A function that does ten steps and returns the seconds of one."""
    import mindspore as ms
    from mindspore import Tensor

    from rexnet.model import DepthwiseConv3x3, create_model
    from rexnet.recipe import load_recipe
    from rexnet.step import TrainStep

    ms.set_context(mode=ms.GRAPH_MODE)
    recipe = load_recipe("quickstart", {"data_dir": "none"})
    network = create_model("rexnet_09", num_classes=10, image_size=_SIZE, seed=0)
    for _, cell in network.cells_and_names():
        if isinstance(cell, DepthwiseConv3x3):
            cell.as_matrix = cell.as_matrix and as_matrix
    step = TrainStep(network, recipe, 1)
    step.set_train(True)
    random = np.random.default_rng(0)
    images = Tensor(random.standard_normal((_BATCH, 3, _SIZE, _SIZE), dtype=np.float32))
    labels = Tensor(random.integers(0, 10, _BATCH).astype(np.int32))
    mask = Tensor(np.ones((_BATCH, network.num_features), np.float32))
    rate, stop = Tensor(0.01, ms.float32), Tensor(0.0, ms.float32)

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(_STEPS):
            loss, _ = step(images, labels, mask, rate, stop)
            loss.asnumpy()
        return (time.perf_counter() - began) / _STEPS

    return measure
