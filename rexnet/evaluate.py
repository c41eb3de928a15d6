"""Exact counts over a validation split, shared out over the ranks.

The graph gives what one sample gives: top-1 hit, top-5 hit, loss. Sums are the host's, in integers, a loss in units
of 2**-24; so no order of adding them matters, and any number of ranks gets the same bits from the same losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from rexnet.data.batches import EvalBatches
from rexnet.model import ReXNet
from rexnet.step import SumOverRanks
from rexnet.world import World

ASK_EVERY = 4  # batches between two questions whether to stop: on several ranks each one is a collective
LOSS_UNIT = 2.0**-24  # 6e-8: finer than float32 knows a loss above 1
LARGEST_LOSS = 2.0**16  # beyond it a loss counts as infinite
LIMB_BITS, NUM_LIMBS = 12, 5  # float32 adds integers below 2**24 exactly: 4,096 ranks of limbs below 2**12
SAMPLES, TOP1, TOP5, LOSS, INFINITE = range(5)  # columns of a table of counts

Table = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """One class: `top1` a share of its samples, `loss` their mean cross entropy; both None without samples."""

    name: str
    num_samples: int
    top1: float | None
    loss: float | None


class Counts:
    """What was counted per class, over all ranks; `table` (num_classes, 5) int64, see the columns above."""

    def __init__(self, table: Table) -> None:
        self.table = table

    @property
    def num_samples(self) -> int:
        return int(self.table[:, SAMPLES].sum())

    def metrics(self) -> dict[str, float]:
        """{"top1", "top5", "loss"}: shares of all samples, and the mean cross entropy, without label smoothing."""
        total = self.table.sum(0)
        return {
            "top1": float(total[TOP1] / total[SAMPLES]),
            "top5": float(total[TOP5] / total[SAMPLES]),
            "loss": _mean_loss(total),
        }

    def classes(self, names: list[str]) -> list[ClassResult]:
        """One result for each class, in order."""
        return [
            ClassResult(
                name=name,
                num_samples=int(row[SAMPLES]),
                top1=float(row[TOP1] / row[SAMPLES]) if row[SAMPLES] else None,
                loss=_mean_loss(row) if row[SAMPLES] else None,
            )
            for name, row in zip(names, self.table, strict=True)
        ]


class SampleResults(nn.Cell):  # type: ignore[misc]
    """images (n, 3, h, w) float32, labels (n,) int32 -> (n, 3) float32: top-1 hit, top-5 hit, cross entropy."""

    def __init__(self, network: ReXNet, num_classes: int) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.num_best = min(5, num_classes)
        self.criterion = nn.CrossEntropyLoss(reduction="none")

    def construct(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.network(images).astype(ms.float32)
        _, best = ops.topk(logits, self.num_best)
        hits = (best == labels.reshape((-1, 1))).astype(ms.float32)
        return ops.stack((hits[:, 0], hits.sum(1), self.criterion(logits, labels)), 1)


class Evaluator:
    """Counts of the network over this rank's batches and everybody else's; every readable sample counts once."""

    def __init__(self, network: ReXNet, batches: EvalBatches, world: World, classes: Sequence[str]) -> None:
        self._cell = SampleResults(network, len(classes))
        self._batches, self._num_classes = batches, len(classes)
        self._sum = SumOverRanks() if world.size > 1 else None

    def run(self, stop: Callable[[], bool]) -> dict[str, float] | None:
        """{"top1", "top5", "loss"}, equal on all ranks; None if `stop` said so, which has to say the same on all.

        It is asked before the first batch and every `ASK_EVERY` batches. Afterwards the network is to be set to
        training again.
        """
        table = self._count(stop)
        return None if table is None else Counts(table).metrics()

    def count(self) -> Counts:
        """The table of counts, equal on all ranks. Afterwards the network is to be set to training again."""
        table = self._count(lambda: False)
        assert table is not None
        return Counts(table)

    def _count(self, stop: Callable[[], bool]) -> Table | None:
        self._cell.set_train(False)
        table = np.zeros((self._num_classes, 5), np.int64)
        for number, (images, labels, weight) in enumerate(self._batches):
            if number % ASK_EVERY == 0 and stop():
                return None
            present = weight > 0
            # A rank without samples computes nothing, since no other waits for it in the graph; but it compiles, since
            # MindSpore's cache finds graphs by the order of their compilation.
            if present.any() or number == 0:
                results = self._cell(Tensor(images), Tensor(labels)).asnumpy()
                add_results(table, labels[present], results[present])
        return self._over_ranks(table)

    def _over_ranks(self, table: Table) -> Table:
        if self._sum is None:
            return table
        return from_limbs(self._sum(Tensor(to_limbs(table))).asnumpy())


def add_results(table: Table, labels: np.ndarray[Any, Any], results: np.ndarray[Any, Any]) -> None:
    """Add samples with these labels (n,) and `SampleResults` (n, 3) to the table."""
    losses = results[:, 2].astype(np.float64)
    finite = losses <= LARGEST_LOSS  # False for NaN as well
    for column, values in (
        (SAMPLES, np.ones(len(labels), np.int64)),
        (TOP1, results[:, 0].astype(np.int64)),
        (TOP5, results[:, 1].astype(np.int64)),
        (LOSS, np.rint(np.where(finite, losses, 0) / LOSS_UNIT).astype(np.int64)),
        (INFINITE, (~finite).astype(np.int64)),
    ):
        np.add.at(table[:, column], labels, values)


def to_limbs(table: Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The table's numbers, from 0 to 2**60 - 1, as float32 digits to base 2**12: devices add floats only."""
    digits = np.zeros((NUM_LIMBS, *table.shape), np.float32)
    for i in range(NUM_LIMBS):
        digits[i] = (table >> (LIMB_BITS * i)) & (2**LIMB_BITS - 1)
    return digits


def from_limbs(digits: np.ndarray[Any, Any]) -> Table:
    """The table that a sum of up to 4,096 `to_limbs` stands for."""
    table = np.zeros(digits.shape[1:], np.int64)
    for i in range(NUM_LIMBS):
        table += np.rint(digits[i]).astype(np.int64) << (LIMB_BITS * i)
    return table


def _mean_loss(row: np.ndarray[Any, Any]) -> float:
    if row[INFINITE]:
        return float("nan")
    return float(row[LOSS] * LOSS_UNIT / row[SAMPLES])
