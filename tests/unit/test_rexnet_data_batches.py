"""Batches are the same bytes whoever prepares them, however; corrupt images are counted, named and replaced."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.errors import SpecError
from rexnet.data import samples as samples_module
from rexnet.data.ahead import Ahead
from rexnet.data.batches import Batch, EvalBatches, TrainBatches
from rexnet.data.order import SampleOrder
from rexnet.recipe import Recipe, make_recipe

Array = np.ndarray[Any, Any]
SIZE, GLOBAL_BATCH = 16, 16
CARD = {
    "image_resize": SIZE, "interpolation": "bicubic", "auto_augment": "randaug-m9-mstd0.5", "re_prob": 0.5,
    "re_value": "random", "num_classes": 4, "batch_size": 2, "max_corrupt": 0.1,
}  # fmt: skip


class Memory:
    """A source in memory: `num` random JPEGs, of which some may be bad; it notes what is read."""

    def __init__(self, num: int = 50, *, bad: Sequence[int] = ()) -> None:
        self.classes = ["a", "b", "c", "d"]
        self.labels: Array = (np.arange(num) % 4).astype(np.int32)
        self.reads: list[int] = []
        self.on_read: Callable[[int], None] = lambda sample: None
        self._data = [self._jpeg(sample) for sample in range(num)]
        for sample in bad:
            self._data[sample] = self._data[sample][:100]

    def __len__(self) -> int:
        return len(self._data)

    def read(self, sample: int) -> bytes:
        self.reads.append(sample)
        self.on_read(sample)
        return self._data[sample]

    def name(self, sample: int) -> str:
        return f"image-{sample}"

    @staticmethod
    @cache
    def _jpeg(sample: int) -> bytes:
        pixels = np.random.default_rng(sample).integers(0, 255, (6, 8, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((40, 30)).save(stream, "JPEG")
        return stream.getvalue()


def recipe(**changes: Any) -> Recipe:
    return make_recipe({**CARD, **changes}, "test")


def order(num: int = 50) -> SampleOrder:
    return SampleOrder(seed=42, num_samples=num, global_batch=GLOBAL_BATCH)


def content(batch: Batch) -> tuple[Any, ...]:
    """Everything in it, comparable."""
    arrays = (batch.images, batch.labels, batch.other_labels, batch.samples)
    return (*(array.tobytes() for array in arrays), batch.lam, batch.positions)


def collected(steps: Sequence[int], *, num_threads: int, **changes: Any) -> dict[int, list[tuple[Any, ...]]]:
    with TrainBatches(recipe(**changes), Memory(), order(), num_threads=num_threads) as batches:
        return {step: [content(batch) for batch in batches.batch(step)] for step in steps}


def test_shapes_and_types_are_those_of_the_step() -> None:
    with TrainBatches(recipe(), Memory(), order(), accumulation=4, num_threads=0) as batches:
        step = batches.batch(0)
    assert [batch.positions for batch in step] == [range(0, 4), range(4, 8), range(8, 12), range(12, 16)]
    for batch in step:
        assert batch.images.shape == (4, 3, SIZE, SIZE) and batch.images.dtype == np.float32
        assert batch.images.flags.c_contiguous and np.isfinite(batch.images).all()
        assert batch.labels.dtype == batch.other_labels.dtype == np.int32 and batch.samples.dtype == np.int64
        assert np.array_equal(batch.labels, batch.samples % 4)
        assert batch.lam == 1 and np.array_equal(batch.labels, batch.other_labels)


@pytest.mark.parametrize("mixup", [0.0, 0.5])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_threads_seeking_and_the_order_of_asking_change_no_byte(num_threads: int, mixup: float) -> None:
    direct = collected(range(8), num_threads=0, mixup=mixup)
    assert len({contents[0][0] for contents in direct.values()}) == 8
    assert collected(range(8), num_threads=num_threads, mixup=mixup) == direct
    jumps = [5, 6, 2, 2, 7, 0]
    assert collected(jumps, num_threads=num_threads, mixup=mixup) == {step: direct[step] for step in jumps}


@pytest.mark.parametrize("mixup", [0.0, 0.5])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 4), (4, 2), (8, 1), (2, 1)])
def test_1_2_4_or_8_devices_train_on_the_same_global_batch(world_size: int, accumulation: int, mixup: float) -> None:
    with TrainBatches(recipe(mixup=mixup), Memory(), order(), num_threads=0) as alone:
        reference = {step: alone.batch(step)[0] for step in (0, 2, 3, 7)}
    for step, whole in reference.items():
        parts: list[Batch] = []
        for rank in range(world_size):
            place = {"rank": rank, "world_size": world_size, "accumulation": accumulation}
            with TrainBatches(recipe(mixup=mixup), Memory(), order(), num_threads=1, **place) as batches:
                parts += batches.batch(step)
        assert [position for part in parts for position in part.positions] == list(range(GLOBAL_BATCH))
        for field in ("samples", "labels", "other_labels", "images"):
            assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field))
        assert {part.lam for part in parts} == {whole.lam}
        assert np.array_equal(whole.samples, order().global_indices(step))


def test_an_epoch_sees_a_sample_in_its_own_way() -> None:
    with TrainBatches(recipe(), Memory(), order(), num_threads=0) as batches:
        first = {s: image.tobytes() for step in range(3) for s, image in images_of(batches.batch(step))}
        second = {s: image.tobytes() for step in range(3, 6) for s, image in images_of(batches.batch(step))}
    both = first.keys() & second.keys()
    assert len(both) > 40 and all(first[sample] != second[sample] for sample in both)


def images_of(step: list[Batch]) -> list[tuple[int, Array]]:
    return [pair for batch in step for pair in zip(batch.samples.tolist(), batch.images, strict=True)]


def test_neighbours_are_mixed_and_both_labels_given() -> None:
    plain = collected_batches(recipe())
    mixed = collected_batches(recipe(mixup=0.5, cutmix_prob=0.5))
    assert {batch.lam == 1 for batch in mixed} == {True, False}
    for one, two in zip(plain, mixed, strict=True):
        swapped = one.images.reshape(-1, 2, 3, SIZE, SIZE)[:, ::-1].reshape(one.images.shape)
        assert np.allclose(two.images, two.lam * one.images + (1 - two.lam) * swapped, atol=1e-5)
        assert np.array_equal(two.labels, one.labels)
        other = one.labels.reshape(-1, 2)[:, ::-1].ravel() if two.lam < 1 else one.labels
        assert np.array_equal(two.other_labels, other)


def collected_batches(chosen: Recipe) -> list[Batch]:
    with TrainBatches(chosen, Memory(), order(), num_threads=0) as batches:
        return [batch for step in range(10) for batch in batches.batch(step)]


def test_mixup_in_an_odd_micro_batch_is_refused() -> None:
    with pytest.raises(SpecError, match="mixup"):
        TrainBatches(recipe(mixup=0.5), Memory(), order(), world_size=16)


def test_seeking_reads_nothing_but_what_is_asked_for_and_next() -> None:
    source, where = Memory(), order()
    with TrainBatches(recipe(), source, where, num_threads=1, depth=1) as batches:
        batches.batch(900)
        batches.batch(901)
    wanted = [sample for step in (900, 901, 902) for sample in where.global_indices(step).tolist()]
    assert source.reads == wanted[: len(source.reads)] and len(source.reads) >= 2 * GLOBAL_BATCH


def test_reading_ahead_is_bounded_and_goes_on_while_the_caller_computes() -> None:
    source, done = Memory(), threading.Event()

    def note(sample: int) -> None:
        if len(source.reads) == 3 * GLOBAL_BATCH:
            done.set()

    source.on_read = note
    with TrainBatches(recipe(), source, order(), num_threads=2, depth=2) as batches:
        batches.batch(0)
        assert done.wait(30)  # steps 1 and 2 are prepared though nobody asked for them
        batches.close()
    assert len(source.reads) == 3 * GLOBAL_BATCH


def test_closing_ends_the_threads() -> None:
    batches = TrainBatches(recipe(), Memory(), order(), num_threads=3)
    batches.batch(0)
    assert any(thread.name.startswith("rexnet-data") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("rexnet-data") for thread in threading.enumerate())


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_read_that_fails_is_raised_where_its_step_is_asked_for(num_threads: int) -> None:
    source, where = Memory(), order()
    broken = int(where.global_indices(1)[3])

    def fail(sample: int) -> None:
        if sample == broken:
            raise OSError("the disk is away")

    source.on_read = fail
    with TrainBatches(recipe(), source, where, num_threads=num_threads) as batches:
        batches.batch(0)
        with pytest.raises(OSError, match="the disk is away"):
            batches.batch(1)
        assert batches.corrupt == {}  # not knowing is no evidence
        source.on_read = lambda sample: None
        healed = [content(batch) for batch in batches.batch(1)]
    assert healed == collected([1], num_threads=0)[1]


# -- corrupt images


@pytest.mark.parametrize("num_threads", [0, 3])
def test_a_corrupt_image_is_replaced_by_the_next_readable_one_named_once(
    num_threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    source, where = Memory(bad=[7, 8, 49]), order()
    with (
        caplog.at_level(logging.WARNING, "rexnet.data"),
        TrainBatches(recipe(), source, where, num_threads=num_threads) as batches,
    ):
        steps = [batches.batch(step)[0] for step in range(6)]
        assert set(batches.corrupt) == {"image-7", "image-8", "image-49"}
        assert all(batches.corrupt.values())
    instead = {7: 9, 8: 9, 49: 0}
    for step, batch in enumerate(steps):
        asked = where.global_indices(step).tolist()
        assert batch.samples.tolist() == [instead.get(sample, sample) for sample in asked]
        assert np.array_equal(batch.labels, batch.samples % 4)
    logged = [record.getMessage() for record in caplog.records]
    assert sorted(message.split()[1] for message in logged) == ["name=image-49", "name=image-7", "name=image-8"]
    assert all(source.reads.count(sample) == 1 for sample in (7, 8, 49)) or num_threads


def test_corrupt_images_change_no_other_byte() -> None:
    def images(bad: Sequence[int]) -> dict[tuple[int, int], bytes]:
        with TrainBatches(recipe(), Memory(bad=bad), order(), num_threads=0) as batches:
            return {
                (step, at): image.tobytes()
                for step in range(3)
                for at, (_, image) in enumerate(images_of(batches.batch(step)))
            }

    whole, holed = images([]), images([7])
    asked = {(step, at): s for step in range(3) for at, s in enumerate(order().global_indices(step).tolist())}
    assert {key for key in whole if whole[key] != holed[key]} == {key for key, sample in asked.items() if sample == 7}


@pytest.mark.parametrize("num_threads", [0, 2])
def test_more_corrupt_images_than_the_budget_stop_the_run_with_the_list(num_threads: int) -> None:
    source = Memory(bad=range(20, 40))
    with TrainBatches(recipe(max_corrupt=0.04), source, order(), num_threads=num_threads) as batches:
        with pytest.raises(SpecError, match=r"corrupt images are more than max_corrupt allows of 50 \(2\)") as caught:
            for step in range(3):
                batches.batch(step)
        assert str(caught.value).count("image-") == min(len(batches.corrupt), 10) or num_threads
        assert str(caught.value).count("image-") >= 3
        with pytest.raises(SpecError, match="max_corrupt"):
            for step in range(3):
                batches.batch(step)


def test_the_list_names_the_first_ten() -> None:
    source = Memory(bad=range(50))
    with (
        EvalBatches(recipe(max_corrupt=0.3), source, batch_size=50, num_threads=0) as batches,
        pytest.raises(SpecError, match=r"16 corrupt images .* \(15\)") as caught,
    ):
        list(batches)
    assert [f"image-{i}:" in str(caught.value) for i in range(12)] == [True] * 10 + [False] * 2


def test_nothing_readable_at_all_is_an_error_even_if_all_may_be_corrupt() -> None:
    with (
        TrainBatches(recipe(max_corrupt=1.0), Memory(bad=range(50)), order(), num_threads=0) as batches,
        pytest.raises(SpecError, match="not one of the images"),
    ):
        batches.batch(0)


# -- validation


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 8), (2, 8), (3, 4), (4, 16), (8, 50)])
def test_each_sample_counts_once_on_any_number_of_ranks(world_size: int, batch_size: int, num_threads: int) -> None:
    with EvalBatches(recipe(), Memory(), batch_size=50, num_threads=0) as alone:
        ((reference, labels, weight),) = list(alone)
    assert weight.tolist() == [1] * 50 and labels.tolist() == [i % 4 for i in range(50)]
    seen: dict[int, bytes] = {}
    lengths = set()
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size, "batch_size": batch_size, "num_threads": num_threads}
        with EvalBatches(recipe(), Memory(), **place) as batches:
            lengths.add(len(batches))
            for index, (images, labels, weight) in enumerate(batches):
                assert images.shape == (batch_size, 3, SIZE, SIZE)
                assert (labels.dtype, weight.dtype) == (np.int32, np.float32)
                first = (index * world_size + rank) * batch_size
                for i in np.flatnonzero(weight).tolist():
                    assert first + i not in seen and labels[i] == (first + i) % 4
                    seen[first + i] = images[i].tobytes()
    assert len(lengths) == 1
    assert seen == {sample: reference[sample].tobytes() for sample in range(50)}


def test_a_corrupt_validation_image_weighs_nothing_and_is_counted() -> None:
    with EvalBatches(recipe(), Memory(bad=[3, 40]), batch_size=20, num_threads=2) as batches:
        for _ in range(2):  # may be gone through again
            weights = np.concatenate([weight for _, _, weight in batches])
            assert np.flatnonzero(weights[:50] == 0).tolist() == [3, 40] and not weights[50:].any()
            assert set(batches.corrupt) == {"image-3", "image-40"}


# -- memory and threads


def test_a_small_set_is_decoded_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recipe(scale=[1, 1], shift_pixels=2)
    source = Memory()
    with TrainBatches(plain, source, order()) as batches:
        images = {step: content(batches.batch(step)[0]) for step in range(9)}
        assert not any(thread.name.startswith("rexnet-data") for thread in threading.enumerate())  # they do not pay
    assert len(source.reads) == len(set(source.reads))
    monkeypatch.setattr(samples_module, "KEEP_BYTES", 1000)
    source = Memory()
    with TrainBatches(plain, source, order(), num_threads=1, depth=0) as batches:
        assert {step: content(batches.batch(step)[0]) for step in range(9)} == images
    assert len(source.reads) == 9 * GLOBAL_BATCH


def test_what_is_cropped_at_random_is_not_kept() -> None:
    source = Memory()
    with TrainBatches(recipe(), source, order(), num_threads=0) as batches:
        for step in range(9):
            batches.batch(step)
    assert len(source.reads) == 9 * GLOBAL_BATCH


def test_working_ahead_stops_at_the_end() -> None:
    planned: list[int] = []

    def plan(step: int) -> tuple[int, list[Callable[[], None]]]:
        planned.append(step)
        return step * step, []

    ahead = Ahead(plan, num_threads=1, depth=2, stop=4)
    assert [ahead.get(step) for step in range(4)] == [0, 1, 4, 9]
    ahead.close()
    assert planned == [0, 1, 2, 3]
