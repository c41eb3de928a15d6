"""Counting over a validation split: exact, whatever the order and the number of ranks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    from mindspore import Tensor, nn

    from rexnet.evaluate import ASK_EVERY, Counts, Evaluator, add_results, from_limbs, to_limbs

from rexnet.data.batches import EvalBatches
from rexnet.data.folder import ImageFolder
from rexnet.recipe import make_recipe
from rexnet.world import World

pytestmark = pytest.mark.filterwarnings("ignore")


def table_of(
    labels: list[int], results: list[tuple[float, float, float]], num_classes: int = 3
) -> np.ndarray[Any, Any]:
    table = np.zeros((num_classes, 5), np.int64)
    if labels:
        add_results(table, np.array(labels, np.int32), np.array(results, np.float32))
    return table


def test_table_gives_metrics_and_one_line_per_class() -> None:
    counts = Counts(table_of([0, 0, 2, 0], [(1, 1, 0.5), (0, 1, 1.5), (1, 1, 0.25), (0, 0, 4.0)]))
    assert counts.metrics() == {"top1": 0.5, "top5": 0.75, "loss": 6.25 / 4}
    zero, one, two = counts.classes(["a", "b", "c"])
    assert (zero.name, zero.num_samples, zero.top1, zero.loss) == ("a", 3, 1 / 3, 2.0)
    assert (one.num_samples, one.top1, one.loss) == (0, None, None)
    assert (two.num_samples, two.top1, two.loss) == (1, 1.0, 0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_loss_that_is_no_number_is_not_hidden_in_a_mean(bad: float) -> None:
    counts = Counts(table_of([0, 1], [(1, 1, 0.5), (0, 0, bad)]))
    assert math.isnan(counts.metrics()["loss"]) and counts.metrics()["top1"] == 0.5
    assert counts.classes(["a", "b", "c"])[0].loss == 0.5


def test_sums_are_the_same_bits_in_any_order_and_on_any_number_of_ranks() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 1001)
    results = np.stack((random.integers(0, 2, 1001), np.ones(1001), random.exponential(3, 1001)), 1)
    whole = table_of(labels.tolist(), results.tolist())
    for ranks in (2, 3, 8):
        order = random.permutation(1001)
        parts = [table_of(labels[order[r::ranks]].tolist(), results[order[r::ranks]].tolist()) for r in range(ranks)]
        digits = np.zeros_like(to_limbs(whole))
        for part in parts:
            digits += to_limbs(part)  # what an all-reduce of float32 does
        assert digits.dtype == np.float32 and np.array_equal(from_limbs(digits), whole)
    assert Counts(whole).metrics()["loss"] == pytest.approx(results[:, 2].mean(), rel=1e-7)


def test_digits_carry_the_largest_numbers() -> None:
    table = np.array([[0, 1, 2**12 - 1, 2**48 + 5, 2**60 - 1]], np.int64)
    assert np.array_equal(from_limbs(to_limbs(table) * np.float32(1)), table)
    half = np.array([[2**59 - 1]], np.int64)
    assert from_limbs(to_limbs(half) + to_limbs(half))[0, 0] == 2**60 - 2


class Brightness(nn.Cell):  # type: ignore[misc]
    """Three logits from an image's mean: a network small enough to compile in no time."""

    def construct(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3)).reshape((-1, 1))
        return mean * Tensor(np.array([[-1.0, 0.1, 1.0]], np.float32))


@pytest.fixture
def evaluator(tmp_path: Path) -> Iterator[Evaluator]:
    """Over 21 images of three classes in batches of two: eleven batches."""
    for number in range(21):
        path = tmp_path / "val" / "abc"[number // 7] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (12 * number,) * 3).save(path)
    recipe = make_recipe({"data_dir": str(tmp_path), "num_classes": 3, "image_resize": 8, "crop_pct": 1}, "test")
    data, world = ImageFolder(str(tmp_path), "val", num_classes=3), World(rank=0, size=1, cpus=(0,))
    with EvalBatches(recipe, data, batch_size=2, num_threads=1) as batches:
        yield Evaluator(Brightness(), batches, world, data.classes)


@pytest.mark.parametrize("answer", [1, 2, 3])
def test_evaluation_told_to_stop_gives_nothing_and_the_next_one_counts_all(evaluator: Evaluator, answer: int) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == answer

    assert evaluator.run(stop) is None
    assert len(asked) == answer
    asked.clear()
    answer = -1  # never
    whole = evaluator.run(stop)
    assert len(asked) == math.ceil(11 / ASK_EVERY)
    counts = evaluator.count()
    assert counts.num_samples == 21 and counts.metrics() == whole
    assert 1 / 3 < counts.metrics()["top1"] < 1  # dark ones are told from bright ones
