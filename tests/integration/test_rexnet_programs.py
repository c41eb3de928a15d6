"""validate, predict and export on real files: rexnet_09 at 32 px with ten classes, alone and under msrun."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cluster.node.processes import find_by_environment
from jobs.contract import Exit
from rexnet import export, predict, validate
from rexnet.data.digits import write_digits
from rexnet.recipe import load_recipe
from tests.support.training import ROOT, free_port

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    import mindspore as ms
    from mindspore import nn

    from rexnet.model import create_model
    from rexnet.weights import load_network

pytestmark = pytest.mark.filterwarnings("ignore")
NUM_CLASSES, SIZE, BATCH = 10, 32, 8


@dataclass(frozen=True)
class Files:
    """What the programs are given: a recipe in MindCV's words, a data set, weights."""

    folder: Path
    config: Path
    data: Path
    weights: Path

    def arguments(self, **more: object) -> list[str]:
        """The card's command line, and keys on top of it."""
        words = ["-c", str(self.config), "--data_dir", str(self.data), "--ckpt_path", str(self.weights)]
        return [*words, *(f"--{key}={value}" for key, value in more.items())]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """35 validation images, one of them corrupt: uneven over classes, and over batches of 8 on any number of ranks."""
    folder = tmp_path_factory.mktemp("programs")
    write_digits(folder / "digits")
    data = folder / "data"
    for number in range(NUM_CLASSES):
        target = data / "val" / f"digit-{number}"
        target.mkdir(parents=True)
        for path in sorted((folder / "digits" / "val" / str(number)).iterdir())[: 1 + number % 7]:
            (target / path.name).write_bytes(path.read_bytes())
    (data / "val" / "digit-4" / "zz.png").write_bytes(b"no image")
    config = folder / "rexnet_x09_ascend.yaml"
    config.write_text(
        yaml.safe_dump(
            {"mode": 0, "distribute": True, "dataset": "imagenet", "batch_size": BATCH, "interpolation": "bicubic",
             "model": "rexnet_09", "num_classes": NUM_CLASSES, "image_resize": SIZE, "amp_level": "O2", "opt": "sgd",
             "max_corrupt": 0.05}
        )
    )  # fmt: skip
    network = create_model("rexnet_09", num_classes=NUM_CLASSES, image_size=SIZE, seed=3)
    arrays = {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}
    for name in arrays:  # answers that differ from image to image: untrained norms let signals fade
        if name.endswith("weight") and ".se." not in name:
            arrays[name] *= 5 if name.startswith("cls") else 2.5
    arrays["moments.cls.1.weight"] = arrays["cls.1.weight"]
    weights = folder / "rexnet_09-1_1.ckpt"
    ms.save_checkpoint([{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()], str(weights))
    return Files(folder, config, data, weights)


@pytest.fixture(scope="module")
def expected(files: Files) -> dict[str, Any]:
    """The same numbers from the probabilities of all readable images, counted here."""
    config, overrides = str(files.config), {"ckpt_path": str(files.weights)}
    recipe = load_recipe(config, overrides)
    paths = [path for path in sorted((files.data / "val").rglob("*.png")) if path.name != "zz.png"]
    labels = np.array([int(path.parent.name.removeprefix("digit-")) for path in paths])
    found = predict.predict(load_network(recipe), [predict.read_image(str(path), recipe) for path in paths], recipe)
    assert len({int(row.argmax()) for row in found}) > 1  # else nothing is told apart
    own = found[np.arange(len(paths)), labels]
    rank = (found > own[:, None]).sum(1)
    return {"paths": paths, "labels": labels, "probabilities": found, "top1": rank == 0, "top5": rank < 5,
            "losses": -np.log(own)}  # fmt: skip


def assert_counted(values: dict[str, Any], expected: dict[str, Any]) -> None:
    labels, losses = expected["labels"], expected["losses"]
    assert values["num_samples"] == len(labels) == 34
    assert values["top1"] == expected["top1"].mean() and values["top5"] == expected["top5"].mean()
    assert values["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert [one["name"] for one in values["classes"]] == [f"digit-{number}" for number in range(NUM_CLASSES)]
    for number, one in enumerate(values["classes"]):
        mine = labels == number
        assert one["num_samples"] == mine.sum()
        assert one["top1"] == expected["top1"][mine].mean()
        assert one["loss"] == pytest.approx(losses[mine].mean(), rel=1e-4)


def test_validation_counts_each_readable_image_once(
    files: Files, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate.main([*files.arguments(), "--json"]) == Exit.DONE
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert_counted(values, expected)
    assert (values["weights"], values["ckpt_path"]) == ("model", str(files.weights))
    assert "zz.png is left out, it is corrupt" in printed.err


def test_validation_on_two_ranks_is_that_of_one(files: Files, expected: dict[str, Any], tmp_path: Path) -> None:
    token = uuid.uuid4().hex
    binaries = Path(sys.executable).parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("REX_", "MS_"))}
    command = [str(binaries / "msrun"), "--worker_num=2", "--local_worker_num=2", "--join=True", "--log_dir=logs",
               f"--master_port={free_port()}", str(ROOT / "rexnet" / "validate.py"), *files.arguments(),
               "--json"]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
            env={**environment, "REX_TOKEN": token, "PATH": f"{binaries}:{os.environ['PATH']}"},
        )  # fmt: skip
    finally:
        for pid in find_by_environment("REX_TOKEN", token):
            os.kill(pid, signal.SIGKILL)
    logs = [(tmp_path / "logs" / f"worker_{rank}.log").read_text(errors="replace") for rank in (0, 1)]
    assert done.returncode == 0, logs
    answers = [[line for line in text.splitlines() if line.startswith('{"')] for text in logs]
    assert [len(lines) for lines in answers] == [1, 0]
    assert_counted(json.loads(answers[0][0]), expected)


def test_per_class_table_has_a_line_for_each_class(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate.main([*files.arguments(), "--per_class"]) == Exit.DONE
    summary, title, *lines = capsys.readouterr().out.splitlines()
    assert summary.startswith("top1=") and title.split() == ["class", "samples", "top1", "loss"]
    assert [(line.split()[0], int(line.split()[1])) for line in lines] == [
        (f"digit-{number}", 1 + number % 7) for number in range(NUM_CLASSES)
    ]
    assert all(math.isfinite(float(word)) for line in lines for word in line.split()[2:])


def test_prediction_names_the_five_best_of_each_image(
    files: Files, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [20, 3]
    images = [str(expected["paths"][i]) for i in chosen]
    assert predict.main([*files.arguments(), "--json", *images]) == Exit.DONE
    answers = json.loads(capsys.readouterr().out)
    assert [answer["image"] for answer in answers] == images
    for answer, i in zip(answers, chosen, strict=True):
        order = np.argsort(-expected["probabilities"][i])[:5]
        assert [one["class"] for one in answer["best"]] == order.tolist()
        assert [one["name"] for one in answer["best"]] == [f"digit-{number}" for number in order]
        assert [one["probability"] for one in answer["best"]] == pytest.approx(
            expected["probabilities"][i][order].tolist(), rel=1e-4
        )


def test_names_come_from_a_file_or_are_numbers(files: Files, tmp_path: Path) -> None:
    named = tmp_path / "classes.txt"
    named.write_text("".join(f"class {number}\n" for number in range(NUM_CLASSES)))
    recipe = load_recipe(str(files.config), {"data_dir": str(files.data)})
    assert predict.class_names(recipe, str(named))[9] == "class 9"
    assert predict.class_names(recipe, None)[9] == "digit-9"
    assert predict.class_names(load_recipe(str(files.config)), None)[9] == "9"
    row = np.array([0.1, 0.2, 0.2, 0.05, 0.0, 0.3, 0.15, 0.0, 0.0, 0.0])
    assert [one["class"] for one in predict.best(row, [str(i) for i in range(10)])] == [5, 1, 2, 6, 0]


def test_exported_graph_gives_the_models_answers_with_built_in_operators(
    files: Files, expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.environ.get("REX_KERNELS")
    out = tmp_path / "rexnet_09.mindir"
    arguments = [word for word in files.arguments() if word not in ("--data_dir", str(files.data))]
    assert export.main([*arguments, "--out", str(out), "--batch_size", "4", "--json"]) == Exit.DONE
    assert os.environ.get("REX_KERNELS") == before
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (values["input"], values["output"]) == ([4, 3, SIZE, SIZE], [4, NUM_CLASSES])
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    recipe = load_recipe(str(files.config))
    images = np.zeros((4, 3, SIZE, SIZE), np.float32)
    chosen = [0, 9, 18, 27]
    for i, out_image in zip(chosen, images, strict=True):
        pixels = predict.read_image(str(expected["paths"][i]), recipe).astype(np.float64)
        out_image[...] = ((pixels - np.array(values["mean"])) / np.array(values["std"])).transpose(2, 0, 1)
    logits = nn.GraphCell(ms.load(str(out)))(ms.Tensor(images)).asnumpy().astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        powers / powers.sum(1, keepdims=True), expected["probabilities"][chosen], rtol=1e-3, atol=1e-6
    )
    body = out.read_bytes()
    assert b"func_type" not in body and b"rexnet-kernels" not in body  # what `ops.Custom` would leave there


def test_more_corrupt_images_than_allowed_end_with_the_list(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate.main(files.arguments(max_corrupt=0)) == Exit.CONFIG
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("rexnet.validate: data_dir: 1 corrupt images") and "zz.png" in said


def wide_weights(folder: Path) -> Path:
    path = folder / "rexnet_13.ckpt"
    if not path.exists():
        ms.save_checkpoint(create_model("rexnet_13", num_classes=NUM_CLASSES, image_size=SIZE, seed=0), str(path))
    return path


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        (validate, ["--ckpt_path={wide}"], r" has shape \(.*, the model wants \(.*another width"),
        (validate, ["--ckpt_path={folder}/none.ckpt"], "there is no file"),
        (validate, ["--ckpt_path="], "--ckpt_path is missing"),
        (validate, ["--ema=True"], r"lacks the moving averages.*--ema False"),
        (validate, ["--data_dir={folder}/none"], "there is no folder .*none/val"),
        (validate, ["--data_dir={empty}"], "data directory without classes"),
        (validate, ["--num_classes=11"], "holds 10 classes and num_classes says 11"),
        (validate, ["--learning_rat=1"], "'learning_rat' is unknown"),
        (validate, ["--batch_size=many"], "--batch_size 'many' is no valid value"),
        (validate, ["--model=rexnet_12"], "did you mean 'rexnet_13'"),
        (validate, ["stray"], "'stray' is out of place"),
        (predict, ["{data}/val/digit-4/zz.png"], "zz.png' is no image that can be decoded"),
        (predict, ["{folder}/none.png"], "none.png' cannot be read: No such file"),
        (predict, [], "no image is named"),
        (predict, ["{image}", "--classes={config}"], "names 11 classes and the recipe says 10"),
        (predict, ["{image}", "--classes"], "--classes has no value"),
        (predict, ["{image}", "--data_dir={folder}"], "there is neither"),
        (export, [], "--out is missing"),
        (export, ["--out={folder}/a.onnx"], "does not end in .mindir"),
        (export, ["--out={folder}/none/a.mindir"], "there is no folder"),
        (export, ["--out={folder}/a.mindir", "--batch_size=0"], "--batch_size '0' is no number"),
    ],
)  # fmt: skip
def test_mistake_ends_with_64_and_one_sentence(
    program: Any, words: list[str], said: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    (files.folder / "empty" / "val").mkdir(parents=True, exist_ok=True)
    image = next((files.data / "val" / "digit-0").iterdir())
    wide = wide_weights(files.folder) if "{wide}" in "".join(words) else ""
    names = {"folder": files.folder, "data": files.data, "config": files.config, "empty": files.folder / "empty",
             "image": image, "wide": wide}  # fmt: skip
    capsys.readouterr()
    assert program.main([*files.arguments(), *(word.format(**names) for word in words)]) == Exit.CONFIG
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("rexnet.")]
    assert len(lines) == 1 and re.search(said, lines[0]) and printed.out == ""


@pytest.mark.parametrize("program", ["validate", "predict", "export"])
def test_program_run_by_its_path_answers_a_mistake(program: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "rexnet" / f"{program}.py"), "-c", "rexnet_08", "image.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == Exit.CONFIG
    assert done.stderr.startswith(f"rexnet.{program}: ") and len(done.stderr.strip().splitlines()) == 1
