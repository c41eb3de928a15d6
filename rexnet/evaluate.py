"""Exact counts over a validation split, shared out over the ranks."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from rexnet.data.augment import normalise
from rexnet.data.folder import ImageFolder
from rexnet.model import ReXNet
from rexnet.step import EvalStep
from rexnet.world import World


class Evaluator:
    """Top-1, top-5 and mean loss of the network over a data set; every sample counts once, on any number of ranks."""

    def __init__(self, network: ReXNet, data: ImageFolder, world: World, batch_size: int) -> None:
        self._cell = EvalStep(network, len(data.classes), world.size)
        self._data, self._world, self._batch_size = data, world, batch_size

    def run(self) -> dict[str, float]:
        """{"top1", "top5", "loss"}, equal on all ranks. Afterwards the network is to be set to training again."""
        self._cell.set_train(False)
        size, rank = self._batch_size, self._world.rank
        totals = np.zeros(4)
        for start in range(0, len(self._data), size * self._world.size):
            first = start + rank * size
            samples = [sample for sample in range(first, first + size) if sample < len(self._data)]
            images = np.zeros((size, *self._data.image(0).shape), np.uint8)
            labels, weight = np.zeros(size, np.int32), np.zeros(size, np.float32)
            for i, sample in enumerate(samples):
                images[i], labels[i], weight[i] = self._data.image(sample), self._data.labels[sample], 1
            counts = self._cell(Tensor(normalise(images)), Tensor(labels), Tensor(weight))
            totals += counts.asnumpy().astype(np.float64)
        top1, top5, loss, number = totals
        return {"top1": float(top1 / number), "top5": float(top5 / number), "loss": float(loss / number)}
