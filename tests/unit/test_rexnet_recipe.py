"""Recipes: what is wrong is named, and what is valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import SpecError
from rexnet.recipe import Recipe, learning_rate, load_recipe, make_recipe, parse_arguments


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
     ("use_nesterov", 1), ("scheduler", "step"), ("seed", True), ("drop_rate", 1.0)],
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
