"""Weights' files for people: which stay, under which names, and what a restart or a stranger finds."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.errors import SpecError
from rexnet.checkpoint import Arrays
from rexnet.keep import INDEX, WeightsKeeper
from rexnet.recipe import Recipe, make_recipe

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    from rexnet.weights import read_weights

pytestmark = pytest.mark.filterwarnings("ignore")


def recipe(policy: str | None = "top_k", number: int = 2, **more: Any) -> Recipe:
    return make_recipe({"ckpt_save_policy": policy, "keep_checkpoint_max": number, "epoch_size": 9, **more}, "test")


def arrays(value: float = 0.0) -> Arrays:
    """A model of one parameter with its trainer's state."""
    weight = np.full((2, 3), value, np.float32)
    return {"cls.1.weight": weight, "momentum.cls.1.weight": weight, "ema.cls.1.weight": weight + 1,
            "loss_scale": np.ones(())}  # fmt: skip


def files(folder: Path) -> set[str]:
    """All files, and a check that the index names exactly those that are weights."""
    names = {path.name for path in folder.iterdir()}
    index = json.loads((folder / INDEX).read_text())
    weights = {name for name in names if name.startswith("rexnet_")}
    assert {entry["file"] for entry in index} <= weights and names - weights == {INDEX}
    for entry in index:
        assert hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    return weights


def test_top_k_keeps_the_best_and_of_equals_the_earliest(tmp_path: Path) -> None:
    keeper = WeightsKeeper(recipe(), tmp_path)
    written = [keeper.add(arrays(), epoch, 10 * epoch, top1) for epoch, top1 in
               enumerate([0.5, 0.7, 0.6, 0.6, 0.7, 0.1], 1)]  # fmt: skip
    assert [path.name if path else None for path in written] == [
        "rexnet_09-1_10.ckpt", "rexnet_09-2_20.ckpt", "rexnet_09-3_30.ckpt", None, "rexnet_09-5_50.ckpt", None
    ]  # fmt: skip
    assert files(tmp_path) == {"rexnet_09-2_20.ckpt", "rexnet_09-5_50.ckpt"}


def test_latest_k_keeps_the_newest_whatever_they_are_worth(tmp_path: Path) -> None:
    keeper = WeightsKeeper(recipe("latest_k"), tmp_path)
    for epoch, top1 in enumerate([0.9, 0.1, None], 1):
        keeper.add(arrays(), epoch, 10 * epoch, top1)
    assert files(tmp_path) == {"rexnet_09-2_20.ckpt", "rexnet_09-3_30.ckpt"}


def test_without_a_policy_nothing_is_written(tmp_path: Path) -> None:
    assert WeightsKeeper(recipe(None), tmp_path / "none").add(arrays(), 1, 10, 0.5) is None
    assert not (tmp_path / "none").exists()


def test_interval_skips_epochs_but_not_the_last(tmp_path: Path) -> None:
    keeper = WeightsKeeper(recipe("latest_k", 9, ckpt_save_interval=4), tmp_path)
    for epoch in range(1, 10):
        keeper.add(arrays(), epoch, epoch, 0.5)
    assert files(tmp_path) == {f"rexnet_09-{epoch}_{epoch}.ckpt" for epoch in (4, 8, 9)}


@pytest.mark.parametrize("ema", [False, True])
def test_file_holds_the_model_and_its_averages_but_no_trainers_state(ema: bool, tmp_path: Path) -> None:
    path = WeightsKeeper(recipe(ema=ema), tmp_path).add(arrays(3), 1, 10, 0.5)
    assert path is not None
    found = read_weights(path)
    assert set(found) == {"cls.1.weight"} | ({"ema.cls.1.weight"} if ema else set())
    assert np.array_equal(found["cls.1.weight"], np.full((2, 3), 3, np.float32))


def test_restart_goes_on_with_what_is_there(tmp_path: Path) -> None:
    keeper = WeightsKeeper(recipe(), tmp_path)
    for epoch, top1 in ((1, 0.5), (2, 0.6)):
        keeper.add(arrays(epoch), epoch, 10 * epoch, top1)
    again = WeightsKeeper(recipe(), tmp_path)
    assert again.kept == keeper.kept
    again.add(arrays(7), 2, 20, 0.6)  # a resumed run that repeats the epoch writes the same file anew
    again.add(arrays(), 3, 30, 0.55)
    assert files(tmp_path) == {"rexnet_09-2_20.ckpt", "rexnet_09-3_30.ckpt"}
    assert read_weights(tmp_path / "rexnet_09-2_20.ckpt")["cls.1.weight"][0, 0] == 7


def test_missing_and_changed_files_are_forgotten_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = WeightsKeeper(recipe(number=3), tmp_path)
    paths = [keeper.add(arrays(), epoch, epoch, 0.1 * epoch) for epoch in (1, 2, 3)]
    assert paths[0] and paths[1]
    paths[0].unlink()
    paths[1].write_bytes(b"mine now")
    with caplog.at_level(logging.WARNING):
        again = WeightsKeeper(recipe(number=1), tmp_path)
    assert [one.file for one in again.kept] == ["rexnet_09-3_3.ckpt"]
    assert "rexnet_09-1_1.ckpt cause=it is missing" in caplog.text
    assert "rexnet_09-2_2.ckpt cause=it was changed" in caplog.text
    again.add(arrays(), 4, 4, 0.9)
    assert files(tmp_path) == {"rexnet_09-2_2.ckpt", "rexnet_09-4_4.ckpt"}
    assert paths[1].read_bytes() == b"mine now"


def test_file_changed_while_training_is_not_deleted(tmp_path: Path) -> None:
    keeper = WeightsKeeper(recipe("latest_k", 1), tmp_path)
    path = keeper.add(arrays(), 1, 1, 0.5)
    assert path is not None
    path.write_bytes(b"mine now")
    keeper.add(arrays(), 2, 2, 0.5)
    assert path.read_bytes() == b"mine now" and [one.file for one in keeper.kept] == ["rexnet_09-2_2.ckpt"]


def test_strangers_file_of_the_same_name_is_not_written_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rexnet_09-1_10.ckpt"
    path.write_bytes(b"a stranger's")
    with caplog.at_level(logging.WARNING):
        assert WeightsKeeper(recipe(), tmp_path).add(arrays(), 1, 10, 0.5) is None
    assert path.read_bytes() == b"a stranger's" and "action=weights-not-kept" in caplog.text
    assert {one.name for one in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize("at", range(4))
def test_crash_at_any_point_leaves_no_file_of_ours_unknown_to_the_next_start(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four points: before the index, before the file, before the deletion, before the last index."""
    keeper = WeightsKeeper(recipe("latest_k", 1), tmp_path)
    keeper.add(arrays(1), 1, 10, 0.5)
    done = 0

    class Crash(Exception): ...

    def crashing(act: Any) -> Any:
        def perform(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done > at:
                raise Crash
            return act(*arguments, **options)

        return perform

    monkeypatch.setattr(os, "replace", crashing(os.replace))
    real_unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **o: (real_unlink if o else crashing(real_unlink))(path, **o))
    with pytest.raises(Crash):
        keeper.add(arrays(2), 2, 20, 0.5)
    monkeypatch.undo()
    again = WeightsKeeper(recipe("latest_k", 1), tmp_path)
    again.add(arrays(2), 2, 20, 0.5)
    assert files(tmp_path) == {"rexnet_09-2_20.ckpt"}
    assert read_weights(tmp_path / "rexnet_09-2_20.ckpt")["cls.1.weight"][0, 0] == 2


@pytest.mark.parametrize("text", ["{", "{}x", '[{"file": "a"}]', "[1]"])
def test_index_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(SpecError, match=r"index\.json is no index of weights' files"):
        WeightsKeeper(recipe(), tmp_path)
