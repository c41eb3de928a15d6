"""Recipes: what is wrong is named, and what is valid; MindCV's files are accepted as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import SpecError
from rexnet.architecture import MODELS
from rexnet.recipe import Recipe, learning_rate, load_recipe, make_recipe, parse_arguments

# Every key of the parser in MindCV's config.py (v0.5.0), but for --config itself.
MINDCV_KEYS = (
    "mode distribute val_while_train val_interval log_interval seed device_target "
    "dataset data_dir train_split val_split dataset_download num_parallel_workers shuffle num_samples batch_size "
    "drop_remainder image_resize scale ratio hflip vflip color_jitter interpolation auto_augment aug_splits re_prob "
    "re_scale re_ratio re_value re_max_attempts mean std crop_pct mixup cutmix cutmix_prob aug_repeats "
    "model num_classes in_channels drop_rate drop_path_rate pretrained ckpt_path resume_opt keep_checkpoint_max "
    "ckpt_save_dir ckpt_save_interval ckpt_save_policy epoch_size dataset_sink_mode ema ema_decay clip_grad clip_value "
    "layer_decay gradient_accumulation_steps opt momentum weight_decay use_nesterov weight_decay_filter eps "
    "scheduler lr min_lr warmup_epochs warmup_factor decay_epochs decay_rate multi_step_decay_milestones "
    "lr_epoch_stair num_cycles cycle_decay loss label_smoothing aux_factor reduction "
    "amp_level val_amp_level amp_cast_list loss_scale_type loss_scale drop_overflow_update eval_shuffle"
)
# What its five ReXNet files say alike, and where they part.
MINDCV_COMMON: dict[str, Any] = {
    "mode": 0, "distribute": True, "num_parallel_workers": 16, "val_while_train": True, "val_interval": 1,
    "dataset": "imagenet", "data_dir": "/path/to/imagenet", "shuffle": True, "dataset_download": False,
    "batch_size": 64, "drop_remainder": True,
    "interpolation": "bicubic", "re_prob": 0.2, "auto_augment": "randaug-m9-mstd0.5", "re_value": "random",
    "num_classes": 1000, "pretrained": False, "ckpt_path": "", "keep_checkpoint_max": 10, "ckpt_save_dir": "./ckpt",
    "ckpt_save_policy": "top_k", "epoch_size": 400, "dataset_sink_mode": True, "amp_level": "O2", "drop_rate": 0.2,
    "loss": "CE", "label_smoothing": 0.1, "scheduler": "cosine_decay", "min_lr": 1.0e-6, "lr": 0.5,
    "opt": "sgd", "momentum": 0.9, "weight_decay": 1.0e-5, "loss_scale": 1024, "use_nesterov": True,
}  # fmt: skip
SHORT_WARMUP = {"warmup_epochs": 5, "decay_epochs": 395}
LONG_WARMUP = {"drop_path_rate": 0.1, "warmup_epochs": 30, "decay_epochs": 370}
MINDCV_FILES: dict[str, dict[str, Any]] = {
    "x09": {"model": "rexnet_09", **SHORT_WARMUP},
    "x10": {"model": "rexnet_10", **SHORT_WARMUP},
    "x13": {"model": "rexnet_13", **SHORT_WARMUP},
    "x15": {"model": "rexnet_15", **LONG_WARMUP},
    "x20": {"model": "rexnet_20", **LONG_WARMUP},
}


def test_packaged_recipe_loads_by_bare_name_and_states_what_it_expects() -> None:
    recipe = load_recipe("quickstart")
    assert recipe.model == "rexnet_09"
    assert recipe.expected_top1 is not None and recipe.expected_top1 >= 0.95
    assert recipe.expected_seconds is not None


def test_unknown_key_names_the_key_its_neighbour_and_the_valid_ones() -> None:
    with pytest.raises(
        SpecError, match=r"'warmup_epoch' is unknown.*did you mean 'warmup_epochs'.*batch_size"
    ) as caught:
        make_recipe({"warmup_epoch": 3}, "r.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", "many"), ("batch_size", 1.5), ("batch_size", 0), ("lr", "fast"), ("lr", -1), ("model", "resnet"),
     ("use_nesterov", 1), ("scheduler", "step"), ("scale", [1]), ("momentum", float("nan")),
     ("seed", True), ("drop_rate", 1.0)],
)  # fmt: skip
def test_wrong_value_names_the_key(key: str, value: object) -> None:
    with pytest.raises(SpecError, match=key) as caught:
        make_recipe({key: value}, "r.yaml")
    assert "\n" not in str(caught.value)


def test_exponent_without_point_is_a_number_as_in_mindcv() -> None:
    assert make_recipe({"min_lr": "1e-6"}, "r.yaml").min_lr == 1e-6


def test_command_line_overrides_the_file() -> None:
    config, overrides = parse_arguments(["-c", "quickstart", "--lr", "0.25", "--distribute=False", "--epoch_size=3"])
    recipe = load_recipe(config, overrides)
    assert (recipe.lr, recipe.distribute, recipe.epoch_size) == (0.25, False, 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--lr"], "--lr"), (["--config", "a", "stray"], "stray"), (["--lr", "1"], "--config")],
)
def test_malformed_command_line_says_what(arguments: list[str], named: str) -> None:
    with pytest.raises(SpecError, match=named):
        parse_arguments(arguments)


@pytest.mark.parametrize(("key", "text"), [("lr", "fast"), ("epoch_size", "2.5"), ("nonsense", "1")])
def test_bad_override_names_the_key(key: str, text: str) -> None:
    with pytest.raises(SpecError, match=key):
        load_recipe("quickstart", {key: text})


def test_missing_file_lists_the_packaged_recipes(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="quickstart"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(SpecError, match="list"):
        load_recipe(str(path))


def test_digest_ignores_where_data_lies_and_sees_the_learning_rate() -> None:
    assert Recipe(data_dir="/a").digest() == Recipe(data_dir="/b").digest()
    assert Recipe(lr=0.1).digest() != Recipe(lr=0.2).digest()


def test_learning_rate_warms_up_then_falls_to_the_minimum() -> None:
    recipe = Recipe(lr=1.0, min_lr=0.1, warmup_epochs=2, decay_epochs=4)
    rates = [learning_rate(recipe, step, 10) for step in range(80)]
    assert rates[0] == 0.05 and rates[19] == 1.0
    assert rates[20:60] == sorted(rates[20:60], reverse=True)
    assert rates[40] == pytest.approx(0.55) and rates[60:] == [0.1] * 20


def test_every_key_of_mindcv_is_known() -> None:
    assert len(MINDCV_KEYS.split()) == 86
    assert [key for key in MINDCV_KEYS.split() if key not in Recipe.model_fields] == []


@pytest.mark.parametrize("name", MINDCV_FILES)
def test_file_of_mindcv_is_accepted_unchanged(name: str, tmp_path: Path) -> None:
    values = {**MINDCV_COMMON, **MINDCV_FILES[name]}
    path = tmp_path / f"rexnet_{name}_ascend.yaml"
    path.write_text(yaml.safe_dump(values))
    recipe = load_recipe(str(path))
    assert {key: getattr(recipe, key) for key in values} == values
    assert recipe.accumulation(8) == recipe.accumulation(1) == 1  # no global_batch: as many images as devices take


@pytest.mark.parametrize("name", MINDCV_FILES)
def test_recipe_of_ours_trains_what_mindcvs_does(name: str) -> None:
    theirs = make_recipe({**MINDCV_COMMON, **MINDCV_FILES[name]}, name)
    ours = load_recipe(f"rexnet_{name[1:]}")
    of_the_machine = {"data_dir", "global_batch", "ckpt_every", "expected_top1", "expected_seconds"}
    assert {key for key in Recipe.model_fields if getattr(ours, key) != getattr(theirs, key)} <= of_the_machine
    assert ours.expected_top1 is not None and 0.76 <= ours.expected_top1 <= 0.82
    assert [ours.batch_size * devices * ours.accumulation(devices) for devices in (1, 2, 4, 8)] == [512] * 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", 1), ("pretrained", True), ("resume_opt", True), ("opt", "lion"), ("opt", "lamb"),
        ("scheduler", "one_cycle"), ("scheduler", "multi_step_decay"), ("lr_epoch_stair", True), ("num_cycles", 2),
        ("cutmix", 1), ("aug_splits", 3), ("aug_repeats", 3), ("auto_augment", "autoaug"), ("auto_augment", "augmix"),
        ("auto_augment", "trivialaugwide"), ("amp_cast_list", "[nn.Conv2d]"), ("loss_scale_type", "auto"),
        ("loss", "BCE"), ("reduction", "sum"), ("aux_factor", 0.4), ("layer_decay", 0.7), ("drop_remainder", False),
        ("eval_shuffle", True), ("dataset", "cifar10"), ("dataset_download", True), ("device_target", "GPU"),
        ("interpolation", "area"), ("in_channels", 1), ("num_classes", None), ("ckpt_save_policy", "best"),
    ],
)  # fmt: skip
def test_value_of_mindcv_that_we_do_not_support_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"^r.yaml: {key}: ") as caught:
        make_recipe({key: value}, "r.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("rexnet_12", "rexnet_13"), ("rexnet_x09", "rexnet_09"), ("rexnet_130", "rexnet_13"), ("rexnet_30", "rexnet_20"),
     ("rexnet", "rexnet_")],
)  # fmt: skip
def test_unknown_model_suggests_the_nearest_and_lists_all(asked: str, nearest: str) -> None:
    with pytest.raises(SpecError, match=f"model: no model '{asked}', did you mean '{nearest}") as caught:
        make_recipe({"model": asked}, "r.yaml")
    assert all(model in str(caught.value) for model in MODELS)


def test_batch_that_does_not_divide_says_which_do() -> None:
    recipe = make_recipe({"batch_size": 48, "global_batch": 512}, "r.yaml")
    with pytest.raises(SpecError, match=r"batch_size: 48 on 8 devices.*global_batch 512.*that do: 4, 8, 16, 32, 64\)"):
        recipe.accumulation(8)
    with pytest.raises(SpecError, match="3 devices"):
        recipe.accumulation(3)


def test_global_batch_and_accumulation_steps_exclude_each_other() -> None:
    with pytest.raises(SpecError, match=r"gradient_accumulation_steps.*global_batch"):
        make_recipe({"gradient_accumulation_steps": 2, "global_batch": 512}, "r.yaml")


def test_fresh_head_without_weights_is_refused() -> None:
    with pytest.raises(SpecError, match="fresh_head"):
        make_recipe({"fresh_head": True}, "r.yaml")


def test_scaled_rate_is_linear_in_the_batch() -> None:
    recipe = make_recipe({"batch_size": 64, "global_batch": 512, "scale_lr": True}, "r.yaml")
    assert (recipe.accumulation(2), recipe.lr_factor(2), recipe.lr_factor(16)) == (1, 0.25, 2.0)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--mode", "0"], "mode", 0), (["--cutmix", "0"], "cutmix", 0.0), (["--aug_repeats=1"], "aug_repeats", 1),
        (["--scale", "0.2, 1"], "scale", (0.2, 1.0)), (["--ratio", "[0.5, 2]"], "ratio", (0.5, 2.0)),
        (["--ema"], "ema", True), (["--use_nesterov", "no"], "use_nesterov", False),
        (["--re_value", "7"], "re_value", 7), (["--re_value", "random"], "re_value", "random"),
        (["--auto_augment", "None"], "auto_augment", None), (["--num_samples", "12"], "num_samples", 12),
        (["--multi_step_decay_milestones", "[3, 4]"], "multi_step_decay_milestones", [3, 4]),
        (["--ckpt_path", "12"], "ckpt_path", "12"), (["--lr", "1e-3"], "lr", 0.001),
    ],
)  # fmt: skip
def test_command_line_reads_every_kind_of_value(words: list[str], key: str, value: object) -> None:
    config, overrides = parse_arguments(["--config", "quickstart", *words, "--val_interval", "2"])
    recipe = load_recipe(config, overrides)
    assert getattr(recipe, key) == value and recipe.val_interval == 2
