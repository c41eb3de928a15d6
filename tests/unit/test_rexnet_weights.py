"""Weights from files: MindCV's names, strictly; a trainer's state is known and left out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.errors import CorruptCheckpoint, SpecError
from rexnet.checkpoint import Arrays
from rexnet.recipe import make_recipe

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    import mindspore as ms
    from mindspore import nn

    from rexnet.model import create_model
    from rexnet.step import TrainStep
    from rexnet.weights import is_state, load_network, load_weights, read_weights, set_parameters

pytestmark = pytest.mark.filterwarnings("ignore")
HEAD = ["cls.1.weight", "cls.1.bias"]


def network(model: str = "rexnet_09", num_classes: int = 10, seed: int = 0) -> Any:
    return create_model(model, num_classes=num_classes, image_size=32, seed=seed)


def arrays_of(cell: Any) -> Arrays:
    return {parameter.name: parameter.asnumpy().copy() for parameter in cell.get_parameters()}


def assert_same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not np.array_equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def other() -> Arrays:
    """The weights of a model with other first values."""
    return arrays_of(network(seed=1))


def save(path: Path, arrays: Arrays) -> Path:
    if path.suffix == ".ckpt":
        ms.save_checkpoint([{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()], str(path))
    else:
        save_file(arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_both_formats_pass_weights_on_bit_by_bit(suffix: str, tmp_path: Path, other: Arrays) -> None:
    path = save(tmp_path / f"weights{suffix}", other)
    cell = network()
    assert load_weights(cell, read_weights(path), str(path)) == []
    assert_same(arrays_of(cell), other)


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_our_own_training_state_is_left_out(opt: str, other: Arrays) -> None:
    cell = network()
    recipe = make_recipe({"opt": opt, "ema": True, "loss_scale_type": "dynamic", "num_classes": 10}, "test")
    state = TrainStep(cell, recipe, 1).state()
    assert {name.partition(".")[0] for name in state} >= {"ema", "loss_scale"}
    assert [name for name in state if not is_state(name, other)] == []
    load_weights(cell, {**other, **state}, "state.safetensors")
    assert_same(arrays_of(cell), other)


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: nn.SGD(weights, momentum=0.9, nesterov=True),
        lambda weights: nn.Momentum(weights, 0.1, 0.9),
        nn.Adam,
        nn.AdamWeightDecay,
        lambda weights: nn.Lamb(weights, 0.1),
        lambda weights: nn.RMSProp(weights, centered=True),
    ],
    ids=["sgd", "momentum", "adam", "adamw", "lamb", "rmsprop"],
)
def test_optimiser_of_mindspore_in_a_checkpoint_is_left_out(make: Any, other: Arrays) -> None:
    cell = network()
    names = {parameter.name for parameter in make(cell.trainable_params()).get_parameters()} - set(other)
    assert names
    state: Arrays = dict.fromkeys(names, np.ones(1, np.float32))
    load_weights(cell, {**other, **state}, "mindcv.ckpt")
    assert_same(arrays_of(cell), other)


def test_missing_names_are_counted_and_the_first_ten_listed(other: Arrays) -> None:
    left = {name: array for name, array in other.items() if ".se." not in name}
    gone = [name for name in other if name not in left]
    with pytest.raises(SpecError, match=rf"^a.ckpt lacks {len(gone)} of the model's parameters: ") as caught:
        load_weights(network(), left, "a.ckpt")
    assert all(name in str(caught.value) for name in gone[:10])
    assert gone[10] not in str(caught.value) and f"and {len(gone) - 10} more" in str(caught.value)


@pytest.mark.parametrize("name", ["features.17.weight", "moments.features.17.weight", "optimizer", "emaa.cls.1.bias"])
def test_unknown_name_is_an_error_even_under_a_known_prefix(name: str, other: Arrays) -> None:
    cell = network()
    before = arrays_of(cell)
    with pytest.raises(SpecError, match=rf"holds 1 arrays that the model does not know: {name} "):
        load_weights(cell, {**other, name: np.zeros(3, np.float32)}, "a.ckpt")
    assert_same(arrays_of(cell), before)


def test_checkpoint_of_another_width_names_the_first_mismatching_parameter() -> None:
    wide = arrays_of(network("rexnet_13"))
    cell = network("rexnet_09")
    first = next(p for p in cell.get_parameters() if tuple(p.shape) != wide[p.name].shape)
    shapes = rf"{first.name} has shape \({wide[first.name].shape[0]},.*the model wants \({first.shape[0]},"
    before = arrays_of(cell)
    with pytest.raises(SpecError, match=shapes) as caught:
        load_weights(cell, wide, "rexnet_13.ckpt")
    assert "another width" in str(caught.value) and "\n" not in str(caught.value)
    assert_same(arrays_of(cell), before)


def test_other_number_of_classes_is_refused_unless_a_fresh_head_is_asked_for(other: Arrays) -> None:
    cell = network(num_classes=3)
    first = arrays_of(cell)
    with pytest.raises(SpecError, match=r"cls\.1\.weight has shape \(10, 1152\).*--fresh_head True"):
        load_weights(cell, other, "a.ckpt")
    assert load_weights(cell, other, "a.ckpt", fresh_head=True) == HEAD
    after = arrays_of(cell)
    for name, array in after.items():
        assert np.array_equal(array, (first if name in HEAD else other)[name]), name


def test_head_that_fits_is_taken_even_if_a_fresh_one_is_allowed(other: Arrays) -> None:
    cell = network()
    assert load_weights(cell, other, "a.ckpt", fresh_head=True) == []
    assert_same(arrays_of(cell), other)


def test_averages_are_taken_on_request_only(other: Arrays) -> None:
    average = {f"ema.{name}": array + 1 for name, array in other.items()}
    cell = network()
    load_weights(cell, {**other, **average}, "a.ckpt")
    assert_same(arrays_of(cell), other)
    load_weights(cell, {**other, **average}, "a.ckpt", ema=True)
    assert_same(arrays_of(cell), {name: array + 1 for name, array in other.items()})
    with pytest.raises(SpecError, match=r"lacks the moving averages \(ema\.\*\) of \d+ parameters.*--ema False"):
        load_weights(cell, other, "a.ckpt", ema=True)


def test_narrower_numbers_are_widened_and_wider_ones_refused(other: Arrays) -> None:
    cell = network()
    load_weights(cell, {name: array.astype(np.float16) for name, array in other.items()}, "half.ckpt")
    assert np.array_equal(cell.cls[1].bias.asnumpy(), other["cls.1.bias"].astype(np.float16).astype(np.float32))
    with pytest.raises(SpecError, match="is float64, the model wants float32"):
        load_weights(cell, {name: array.astype(np.float64) for name, array in other.items()}, "double.ckpt")


def test_resume_takes_all_or_nothing(other: Arrays) -> None:
    cell = network()
    with pytest.raises(SpecError, match="does not know: momentum"):
        set_parameters(cell.get_parameters(), {**other, "momentum": np.zeros(1, np.float32)}, "manifest")


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("none.ckpt", None, SpecError, "there is no file"),
        ("weights.pth", b"x", SpecError, "neither .safetensors nor .ckpt"),
        ("broken.ckpt", b"no checkpoint", CorruptCheckpoint, "no MindSpore checkpoint"),
        ("empty.ckpt", b"", CorruptCheckpoint, "no MindSpore checkpoint"),
        ("broken.safetensors", b"no tensors", CorruptCheckpoint, "no safetensors file"),
    ],
)
def test_file_that_holds_no_weights_is_named(
    name: str, content: bytes | None, error: type[Exception], said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said) as caught:
        read_weights(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_network_of_a_recipe_has_its_files_weights(tmp_path: Path, other: Arrays) -> None:
    path = save(tmp_path / "a.ckpt", {**other, **{f"ema.{name}": array + 1 for name, array in other.items()}})
    values = {"num_classes": 10, "image_resize": 32, "ckpt_path": str(path)}
    assert_same(arrays_of(load_network(make_recipe(values, "test"))), other)
    averaged = arrays_of(load_network(make_recipe({**values, "ema": True}, "test")))
    assert np.array_equal(averaged["cls.1.bias"], other["cls.1.bias"] + 1)
