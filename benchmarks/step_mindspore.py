"""A worker of the step's benchmark: ReXNet 0.9 on MindSpore, ours or with the built-in operators as MindCV uses them.

    python -m benchmarks.step_mindspore ours|builtin BATCH SIZE

Graph mode, float32: forward, backward, SGD with momentum. See `benchmarks.step` for what it reads and prints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from benchmarks.rexnet_shape import CLASSES, LAST, STEM, blocks
from benchmarks.worker import serve

LR = 0.01


def unit(
    before: int, after: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, act: Any = None
) -> list[nn.Cell]:
    conv = nn.Conv2d(before, after, kernel, stride, pad_mode="pad", padding=kernel // 2, group=groups)
    return [conv, nn.BatchNorm2d(after), *([act] if act else [])]


class Gate(nn.Cell):  # type: ignore[misc]
    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // 12
        self.layers = nn.SequentialCell(
            nn.Conv2d(channels, reduced, 1, has_bias=True), nn.BatchNorm2d(reduced), nn.ReLU(),
            nn.Conv2d(reduced, channels, 1, has_bias=True), nn.Sigmoid(),
        )  # fmt: skip

    def construct(self, x: Tensor) -> Tensor:
        return x * self.layers(x.mean((2, 3), True))


class Block(nn.Cell):  # type: ignore[misc]
    """The shortcut is added by assigning to a slice, as MindCV does."""

    def __init__(self, before: int, wide: int, after: int, stride: int, gated: bool) -> None:
        super().__init__()
        expand = unit(before, wide, act=nn.SiLU()) if wide != before else []
        gate = [Gate(wide)] if gated else []
        self.layers = nn.SequentialCell(
            [*expand, *unit(wide, wide, kernel=3, stride=stride, groups=wide), *gate, nn.ReLU6(), *unit(wide, after)]
        )
        self.before, self.shortcut = before, stride == 1 and before <= after

    def construct(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        if self.shortcut:
            out[:, 0 : self.before] += x
        return out


class Builtin(nn.Cell):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        shape = blocks()
        self.features = nn.SequentialCell(
            [*unit(3, STEM, kernel=3, stride=2, act=nn.SiLU()), *(Block(*block) for block in shape),
             *unit(shape[-1][2], LAST, act=nn.SiLU())]
        )  # fmt: skip
        self.classifier = nn.Dense(LAST, CLASSES)

    def construct(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Step(nn.Cell):  # type: ignore[misc]
    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.criterion = network, nn.CrossEntropyLoss()
        weights = ParameterTuple(network.trainable_params())
        self.gradients = ms.value_and_grad(self._loss, None, weights)
        self.optimizer = nn.SGD(weights, learning_rate=LR, momentum=0.9)

    def construct(self, images: Tensor, labels: Tensor) -> Tensor:
        loss, gradients = self.gradients(images, labels)
        return ops.depend(loss, self.optimizer(gradients))

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(self.network(images), labels)


def make_step(which: str, batch: int, size: int) -> Callable[[], object]:
    ms.set_context(mode=ms.GRAPH_MODE)
    random = np.random.default_rng(0)
    images = Tensor(random.standard_normal((batch, 3, size, size), dtype=np.float32))
    labels = Tensor(random.integers(0, CLASSES, batch).astype(np.int32))
    if which == "builtin":
        step = Step(Builtin())
        step.set_train(True)
        return lambda: step(images, labels).asnumpy()

    from rexnet.model import create_model
    from rexnet.recipe import make_recipe
    from rexnet.step import TrainStep

    # What `rexnet.train` runs, with the peers' update: no decay, momentum 0.9 without Nesterov.
    wanted = {"opt": "momentum", "lr": LR, "weight_decay": 0.0, "drop_rate": 0.0, "batch_size": batch}
    network = create_model("rexnet_09", num_classes=CLASSES, image_size=size, seed=0)
    train = TrainStep(network, make_recipe(wanted, "benchmark"), world_size=1)
    none, control = Tensor(np.zeros((1, 1), np.float32)), Tensor(np.array([LR, 0, 1, 0], np.float32))
    inputs = [(images, labels, labels, none, none)]

    def train_once() -> object:
        loss, _ = train(inputs, control)
        return loss.asnumpy()

    return train_once


if __name__ == "__main__":
    began = time.perf_counter()
    serve(make_step(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), began)
