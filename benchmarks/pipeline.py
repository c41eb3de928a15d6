"""The input pipeline at 224 px with the card's augmentations, ours beside MindSpore's own operators.

A thousand JPEGs of about 500x400, cut from scikit-learn's two sample photographs. Both decode, crop, flip, apply
RandAugment (m9, mstd 0.5, bicubic), normalise and erase on two workers; each measurement is a pass of its own over
the set in batches of 64, its start included and nothing prepared before it.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.pairs import Result, in_turn
from rexnet.data.batches import TrainBatches
from rexnet.data.folder import ImageFolder
from rexnet.data.order import SampleOrder
from rexnet.recipe import Recipe, make_recipe

_IMAGES, _CLASSES, _BATCH, _WORKERS = 1000, 10, 64, 2
_STEPS = _IMAGES // _BATCH
_CARD = {
    "interpolation": "bicubic", "re_prob": 0.2, "re_value": "random", "auto_augment": "randaug-m9-mstd0.5",
    "num_classes": _CLASSES, "batch_size": _BATCH,
}  # fmt: skip


def run() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="rexnet-jpegs-") as folder:
        write_jpegs(Path(folder))
        recipe = make_recipe({**_CARD, "data_dir": folder}, "benchmark")
        cpu: dict[str, list[float]] = {"ours": [], "theirs": []}
        passes = iter(range(100))
        pairs = in_turn(
            lambda: timed(lambda: ours(recipe, next(passes)), cpu["ours"]),
            lambda: timed(lambda: mindspores(recipe), cpu["theirs"]),
        )
    rates = [_STEPS * _BATCH / statistics.median(times) for times in zip(*pairs, strict=True)]
    speed_up = statistics.median(theirs / mine for mine, theirs in pairs)
    work = [statistics.median(seconds) / (_STEPS * _BATCH) * 1000 for seconds in cpu.values()]
    note = (
        f"{_STEPS * _BATCH} images, {rates[0]:.0f} beside {rates[1]:.0f} images/s: {speed_up:.2f}x; "
        f"CPU {work[0]:.1f} beside {work[1]:.1f} ms an image"
    )
    return [Result(name="input pipeline, 224 px", peer="MindSpore's operators", pairs=pairs, note=note)]


def write_jpegs(folder: Path) -> None:
    """The data set, the same each time, as `train/<class>/*.jpg` at quality 90."""
    from sklearn.datasets import load_sample_image

    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    numbers = np.random.default_rng(0)
    for i in range(_IMAGES):
        photo = photos[i % 2]
        height, width = numbers.integers(375, 426), numbers.integers(450, 551)
        top, left = numbers.integers(photo.shape[0] - height + 1), numbers.integers(photo.shape[1] - width + 1)
        path = folder / "train" / str(i % _CLASSES) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[top : top + height, left : left + width]).save(path, quality=90)


def timed(run_pass: Callable[[], None], cpu: list[float]) -> float:
    """Seconds that a pass takes; the CPU seconds of all its threads are appended to `cpu`."""
    began, cpu_before = time.perf_counter(), time.process_time()
    run_pass()
    cpu.append(time.process_time() - cpu_before)
    return time.perf_counter() - began


def ours(recipe: Recipe, number: int) -> None:
    """A pass, the order and random numbers of each `number` its own."""
    source = ImageFolder(recipe.data_dir, "train", num_classes=_CLASSES)
    order = SampleOrder(seed=number, num_samples=len(source), global_batch=_BATCH)
    with TrainBatches(recipe, source, order, num_threads=_WORKERS, num_steps=_STEPS) as batches:
        for step in range(_STEPS):
            (batch,) = batches.batch(step)
            assert batch.images.shape == (_BATCH, 3, 224, 224)


def mindspores(recipe: Recipe) -> None:
    """A pass through MindSpore's data set and operators, put together as MindCV does."""
    import mindspore.dataset as ds
    from mindspore.dataset import vision

    cubic = vision.Inter.BICUBIC
    steps: list[Any] = [
        vision.RandomCropDecodeResize(recipe.image_resize, recipe.scale, recipe.ratio, cubic),
        vision.RandomHorizontalFlip(recipe.hflip),
        RandAugmentPeer(magnitude=9, deviation=0.5, fill=(124, 116, 104)),
        vision.Normalize(recipe.mean, recipe.std),
        vision.HWC2CHW(),
        vision.RandomErasing(recipe.re_prob, recipe.re_scale, recipe.re_ratio, recipe.re_value),
    ]
    data = ds.ImageFolderDataset(str(Path(recipe.data_dir) / "train"), num_parallel_workers=_WORKERS, shuffle=True)
    data = data.map(steps, "image", num_parallel_workers=_WORKERS)
    data = data.batch(_BATCH, drop_remainder=True, num_parallel_workers=1)
    number = 0
    for images, _ in data.create_tuple_iterator(num_epochs=1, output_numpy=True):
        assert images.shape == (_BATCH, 3, 224, 224)
        number += 1
    assert number == _STEPS


class RandAugmentPeer:
    """RandAugment out of MindSpore's operators, each made for the image at hand and called on it, as in MindCV."""

    def __init__(self, *, magnitude: float, deviation: float, fill: tuple[int, int, int]) -> None:
        from mindspore.dataset import vision

        self._magnitude, self._deviation = magnitude, deviation
        moving = {"resample": vision.Inter.BICUBIC, "fill_value": fill}

        def adjust(share: float, what: str) -> Any:
            return vision.RandomColorAdjust(**{what: (0.1 + 1.8 * share,) * 2})

        def affine(value: float, what: str, *, down: bool) -> Any:
            value = random.choice((value, -value))
            return vision.RandomAffine(0, **{what: (0, 0, value, value) if down else (value, value)}, **moving)

        def rotation(share: float) -> Any:
            return vision.RandomRotation((random.choice((30 * share, -30 * share)),) * 2, **moving)

        self._makers: list[Callable[[float], Any]] = [
            lambda share: vision.AutoContrast(),
            lambda share: vision.Equalize(),
            lambda share: vision.Invert(),
            rotation,
            lambda share: vision.RandomPosterize((max(8 - int(4 * share), 1),) * 2),
            lambda share: vision.RandomSolarize((int(255 * share),) * 2),
            lambda share: vision.RandomColor((0.1 + 1.8 * share,) * 2),
            partial(adjust, what="contrast"),
            partial(adjust, what="brightness"),
            lambda share: vision.RandomSharpness((0.1 + 1.8 * share,) * 2),
            lambda share: affine(0.3 * share, "shear", down=False),
            lambda share: affine(0.3 * share, "shear", down=True),
            lambda share: affine(0.45 * share, "translate", down=False),
            lambda share: affine(0.45 * share, "translate", down=True),
        ]

    def __call__(self, image: Any) -> Any:
        for maker in random.choices(self._makers, k=2):
            if random.random() < 0.5:
                level = min(max(random.gauss(self._magnitude, self._deviation), 0.0), 10.0)
                image = maker(level / 10)(image)
        return image
