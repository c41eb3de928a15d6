"""The digits folder is written once, whole; the image folder says what is missing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.errors import SpecError
from rexnet.data.digits import main, write_digits
from rexnet.data.folder import ImageFolder

KIND: dict[str, Any] = {"num_classes": 10, "size": 16, "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "set"
    assert write_digits(folder)
    return folder


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_second_call_changes_nothing(digits: Path) -> None:
    before = listing(digits)
    assert not write_digits(digits)
    assert listing(digits) == before


def test_split_is_fixed_and_holds_every_scan_once(digits: Path) -> None:
    train, val = ImageFolder(str(digits), "train", **KIND), ImageFolder(str(digits), "val", **KIND)
    assert (len(train), len(val)) == (1438, 359)
    assert len({path.name for path in [*train.paths, *val.paths]}) == 1797
    assert val.paths[0].name == "0010.png"
    assert train.image(0).shape == (16, 16, 3) and train.labels.dtype == np.int32


def test_two_writers_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        wrote = list(pool.map(write_digits, [tmp_path / "set"] * 2))
    assert sorted(wrote) == [False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_folder_with_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main([str(tmp_path)]) == 64
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_missing_folder_and_wrong_number_of_classes_are_named(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="data_dir"):
        ImageFolder("", "train", **KIND)
    with pytest.raises(SpecError, match=str(tmp_path)):
        ImageFolder(str(tmp_path), "train", **KIND)
    with pytest.raises(SpecError, match="10 classes and num_classes says 1000"):
        ImageFolder(str(digits), "train", **{**KIND, "num_classes": 1000})


def test_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    for label in range(2):
        (tmp_path / "val" / str(label)).mkdir(parents=True)
        (tmp_path / "val" / str(label) / "a.png").write_bytes(b"no image")
    data = ImageFolder(str(tmp_path), "val", **{**KIND, "num_classes": 2})
    with pytest.raises(SpecError, match=r"a\.png"):
        data.image(0)
