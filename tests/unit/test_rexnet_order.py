"""Sample order and masks are pure functions of their keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.errors import SpecError
from rexnet.data import order as order_module
from rexnet.data.keyed import Domain, Draws, keyed
from rexnet.data.masks import dropout_mask, mix_neighbours, mixup_lambda, path_mask
from rexnet.data.order import SampleOrder

ORDER = SampleOrder(seed=7, num_samples=100, global_batch=16)
Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_any_number_of_ranks_sees_the_same_global_batch(world_size: int) -> None:
    for step in (0, 5, 6, 1000):
        shares = [ORDER.share(step, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate([samples for _, samples in shares]), ORDER.global_indices(step))
        assert [position for positions, _ in shares for position in positions] == list(range(16))


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 8), (2, 4), (4, 2), (8, 1), (1, 1)])
def test_micro_batches_cut_the_same_global_batch(world_size: int, accumulation: int) -> None:
    parts = [part for rank in range(world_size) for part in ORDER.micro_batches(9, rank, world_size, accumulation)]
    assert len(parts) == world_size * accumulation
    assert {len(samples) for _, samples in parts} == {16 // len(parts)}
    assert np.array_equal(np.concatenate([samples for _, samples in parts]), ORDER.global_indices(9))
    assert [position for positions, _ in parts for position in positions] == list(range(16))


def test_shares_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(SpecError, match="batch_size: 16 samples do not divide by 3"):
        ORDER.share(0, 0, 3)
    with pytest.raises(SpecError, match="8 samples a worker do not divide by 3"):
        ORDER.micro_batches(0, 0, 2, 3)


def test_order_of_asking_does_not_matter() -> None:
    forward = [ORDER.global_indices(step).tolist() for step in range(40)]
    fresh = SampleOrder(seed=7, num_samples=100, global_batch=16)
    assert [fresh.global_indices(step).tolist() for step in reversed(range(40))] == forward[::-1]


def test_seeking_makes_one_permutation_and_replays_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    def counted(*key: Any) -> np.random.Generator:
        made.append(key)
        return keyed(*key)

    order_module.permutation.cache_clear()
    monkeypatch.setattr(order_module, "keyed", counted)
    large = SampleOrder(seed=1, num_samples=1_281_167, global_batch=512)
    large.global_indices(300 * large.steps_per_epoch + 1000)
    large.global_indices(300 * large.steps_per_epoch + 1001)
    assert made == [(Domain.ORDER, 1, 300)]


def test_an_epoch_sees_each_sample_at_most_once_and_epochs_differ() -> None:
    first = np.concatenate([ORDER.global_indices(step) for step in range(6)])
    second = np.concatenate([ORDER.global_indices(step) for step in range(6, 12)])
    assert len(set(first.tolist())) == 96 and len(set(second.tolist())) == 96
    assert not np.array_equal(first, second)


def test_without_shuffling_every_epoch_counts_up() -> None:
    plain = SampleOrder(seed=7, num_samples=100, global_batch=16, shuffle=False)
    for epoch in (0, 3):
        seen = np.concatenate([plain.global_indices(epoch * 6 + step) for step in range(6)])
        assert seen.tolist() == list(range(96)) and seen.dtype == np.int64


@pytest.mark.parametrize("shuffle", [True, False])
def test_fewer_samples_than_the_split_are_spread_evenly_over_it(shuffle: bool) -> None:
    """Numbers are the split's; a split sorted by ten classes of 36 gives each its share."""
    few = SampleOrder(seed=7, num_samples=70, global_batch=16, shuffle=shuffle, split_size=360)
    one_epoch = [np.concatenate([few.global_indices(4 * epoch + step) for step in range(4)]) for epoch in range(30)]
    chosen = sorted(set(np.concatenate(one_epoch).tolist()))
    if shuffle:
        assert len(chosen) == 70 and all(len(set(seen.tolist())) == 64 for seen in one_epoch)
        assert np.bincount(np.array(chosen) // 36).tolist() == [7] * 10
    else:
        assert all(np.array_equal(seen, one_epoch[0]) for seen in one_epoch) and len(chosen) == 64
    assert set(np.diff(chosen).tolist()) == {5, 6} and chosen[0] == 0 and max(chosen) < 360


def test_as_many_samples_as_the_split_are_those_of_the_plain_order() -> None:
    whole = SampleOrder(seed=7, num_samples=100, global_batch=16, split_size=100)
    assert all(np.array_equal(whole.global_indices(step), ORDER.global_indices(step)) for step in range(20))


def test_another_seed_gives_another_order() -> None:
    other = SampleOrder(seed=8, num_samples=100, global_batch=16)
    assert not np.array_equal(other.global_indices(0), ORDER.global_indices(0))


def test_a_batch_larger_than_the_data_names_batch_size() -> None:
    with pytest.raises(SpecError, match="batch_size"):
        SampleOrder(seed=0, num_samples=10, global_batch=16)


def test_domains_keep_their_numbers() -> None:
    assert {domain.name: domain.value for domain in Domain} == {
        "ORDER": 1, "AUGMENT": 2, "DROPOUT": 3, "PATH": 4, "MIXUP": 5
    }  # fmt: skip


def test_draws_are_of_the_distribution_they_name() -> None:
    draws = Draws(keyed(Domain.AUGMENT, 1, 2, 3))
    uniform = [draws.uniform(2, 4) for _ in range(4000)]
    assert min(uniform) >= 2 and max(uniform) < 4 and abs(np.mean(uniform) - 3) < 0.05
    whole = [draws.integer(-2, 2) for _ in range(5000)]
    assert set(whole) == {-2, -1, 0, 1, 2} and min(np.bincount(np.array(whole) + 2)) > 850
    normal = [draws.normal(9, 0.5) for _ in range(4000)]
    assert abs(np.mean(normal) - 9) < 0.05 and abs(np.std(normal) - 0.5) < 0.03


def test_dropout_mask_of_a_position_does_not_depend_on_who_computes_it() -> None:
    def mask(positions: range) -> Array:
        return dropout_mask(seed=3, step=9, positions=positions, num_features=50, rate=0.4)

    assert np.array_equal(mask(range(8)), np.concatenate([mask(range(4)), mask(range(4, 8))]))
    assert set(np.unique(mask(range(8)))) == {np.float32(0), np.float32(1) / np.float32(0.6)}


def test_no_dropout_is_a_mask_of_ones() -> None:
    assert (dropout_mask(seed=3, step=9, positions=range(2), num_features=5, rate=0.0) == 1).all()


def test_path_mask_drops_each_block_at_its_rate_whoever_computes_it() -> None:
    rates = [0.0, 0.1, 0.5]

    def mask(positions: range, step: int = 9) -> Array:
        return path_mask(seed=3, step=step, positions=positions, rates=rates)

    whole = mask(range(8))
    assert whole.shape == (8, 3) and whole.dtype == np.float32
    assert np.array_equal(whole, np.concatenate([mask(range(2)), mask(range(2, 8))]))
    many = np.concatenate([mask(range(64), step) for step in range(60)])
    for column, rate in enumerate(rates):
        kept = many[:, column] > 0
        assert abs(kept.mean() - (1 - rate)) < 0.03
        assert np.allclose(many[kept, column], 1 / (1 - rate))


def test_no_drop_path_is_a_mask_of_ones() -> None:
    assert (path_mask(seed=3, step=9, positions=range(2), rates=[0.0, 0.0]) == 1).all()
    assert path_mask(seed=3, step=9, positions=range(2), rates=[]).shape == (2, 0)


def test_path_mask_has_nothing_to_do_with_dropout() -> None:
    dropout = dropout_mask(seed=3, step=9, positions=range(16), num_features=8, rate=0.5)
    assert not np.array_equal(dropout, path_mask(seed=3, step=9, positions=range(16), rates=[0.5] * 8))


def test_mixup_draws_one_lambda_a_step() -> None:
    lams = [mixup_lambda(seed=1, step=step, alpha=0.2, probability=0.5) for step in range(600)]
    assert lams == [mixup_lambda(seed=1, step=step, alpha=0.2, probability=0.5) for step in range(600)]
    mixing = [lam for lam in lams if lam < 1]
    assert 240 < len(mixing) < 360 and min(mixing) >= 0
    assert abs(np.mean(mixing) - 0.5) < 0.08 and abs(np.var(mixing) - 1 / (4 * 1.4)) < 0.03  # of Beta(0.2, 0.2)
    assert mixup_lambda(seed=1, step=0, alpha=0.0, probability=1.0) == 1


def test_neighbours_are_mixed_in_pairs() -> None:
    images = np.random.default_rng(0).random((4, 3, 2, 2), np.float32)
    mixed = images.copy()
    mix_neighbours(mixed, 0.75)
    expected = 0.75 * images + 0.25 * images[[1, 0, 3, 2]]
    assert np.allclose(mixed, expected, atol=1e-6)
