"""Sample order, augmentation and dropout are pure functions of their keys."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.errors import SpecError
from rexnet.data.augment import augment, dropout_mask
from rexnet.data.order import SampleOrder

ORDER = SampleOrder(seed=7, num_samples=100, global_batch=16)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_any_number_of_ranks_sees_the_same_global_batch(world_size: int) -> None:
    for step in (0, 5, 6, 1000):
        shares = [ORDER.share(step, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate([samples for _, samples in shares]), ORDER.global_indices(step))
        assert [position for positions, _ in shares for position in positions] == list(range(16))


def test_order_of_asking_does_not_matter() -> None:
    forward = [ORDER.global_indices(step).tolist() for step in range(40)]
    fresh = SampleOrder(seed=7, num_samples=100, global_batch=16)
    assert [fresh.global_indices(step).tolist() for step in reversed(range(40))] == forward[::-1]


def test_an_epoch_sees_each_sample_at_most_once_and_epochs_differ() -> None:
    first = np.concatenate([ORDER.global_indices(step) for step in range(6)])
    second = np.concatenate([ORDER.global_indices(step) for step in range(6, 12)])
    assert len(set(first.tolist())) == 96 and len(set(second.tolist())) == 96
    assert not np.array_equal(first, second)


def test_another_seed_gives_another_order() -> None:
    other = SampleOrder(seed=8, num_samples=100, global_batch=16)
    assert not np.array_equal(other.global_indices(0), ORDER.global_indices(0))


def test_a_batch_larger_than_the_data_names_batch_size() -> None:
    with pytest.raises(SpecError, match="batch_size"):
        SampleOrder(seed=0, num_samples=10, global_batch=16)


def test_augmentation_depends_on_seed_epoch_and_sample_alone() -> None:
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)

    def moved(epoch: int, sample: int) -> bytes:
        return augment(image, seed=1, epoch=epoch, sample=sample, shift_pixels=2, hflip=0.5).tobytes()

    assert moved(3, 4) == moved(3, 4)
    assert len({moved(epoch, sample) for epoch in range(5) for sample in range(5)}) > 5


def test_a_shift_keeps_the_pixels_that_stay_inside() -> None:
    image = np.full((6, 6, 3), 9, np.uint8)
    for sample in range(20):
        result = augment(image, seed=0, epoch=0, sample=sample, shift_pixels=2, hflip=0.0)
        assert result.shape == image.shape and (result == 9).all(axis=2).sum() >= 16


def test_dropout_mask_of_a_position_does_not_depend_on_who_computes_it() -> None:
    def mask(positions: range) -> np.ndarray:  # type: ignore[type-arg]
        return dropout_mask(seed=3, step=9, positions=positions, num_features=50, rate=0.4)

    assert np.array_equal(mask(range(8)), np.concatenate([mask(range(4)), mask(range(4, 8))]))
    assert set(np.unique(mask(range(8)))) == {np.float32(0), np.float32(1) / np.float32(0.6)}


def test_no_dropout_is_a_mask_of_ones() -> None:
    assert (dropout_mask(seed=3, step=9, positions=range(2), num_features=5, rate=0.0) == 1).all()
