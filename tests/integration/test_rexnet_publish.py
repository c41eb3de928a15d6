"""Weights out of a chain as files of their own: exactly those of the checkpoint, loadable strictly, named by digest."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs.contract import Exit
from jobs.errors import SpecError
from jobs.files import STATE
from orchestrator.cli import main as command_line
from rexnet.architecture import MODELS
from rexnet.checkpoint import Arrays
from tests.support.chains import make_commit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    import mindspore as ms

    from rexnet import publish
    from rexnet.model import create_model
    from rexnet.weights import load_weights, read_weights

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[2]
NUM_CLASSES, SIZE = 7, 32


def network(model: str, seed: int = 0) -> Any:
    return create_model(model, num_classes=NUM_CLASSES, image_size=SIZE, seed=seed)


def arrays_of(cell: Any) -> Arrays:
    return {parameter.name: parameter.asnumpy().copy() for parameter in cell.get_parameters()}


def assert_same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []


@pytest.fixture(scope="module")
def weights() -> Arrays:
    return arrays_of(network("rexnet_09", seed=3))


@pytest.fixture(scope="module")
def averages(weights: Arrays) -> Arrays:
    """Of every array, as rexnet keeps them; none is equal to the weights."""
    return {name: array * np.float32(0.5) + np.float32(0.25) for name, array in weights.items()}


@pytest.fixture(scope="module")
def state(weights: Arrays, averages: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's state as rexnet.train saves it: weights, optimiser, averages."""
    path = tmp_path_factory.mktemp("state") / STATE
    moments = {
        f"momentum.{name}": array + 1 for name, array in weights.items() if not name.endswith(("mean", "variance"))
    }
    save_file(
        {**weights, **moments, **{f"ema.{name}": array for name, array in averages.items()},
         "loss_scale": np.array(1024, np.float32)}, path,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def uri(state: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A chain of one checkpoint with that state."""
    folder = tmp_path_factory.mktemp("chain")
    writer = CheckpointStore(open_store(f"file://{folder / 'store'}"), "j-1")
    writer.start_attempt(1)
    make_commit(writer, folder, 1, 10, None, {STATE: state})
    return f"file://{folder / 'store'}"


def rexctl(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["rexctl", "checkpoints", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("kind", publish.FORMATS)
@pytest.mark.parametrize("ema", [False, True])
def test_exported_file_loads_strictly_into_the_model_with_equal_arrays(
    *, kind: str, ema: bool, uri: str, weights: Arrays, averages: Arrays, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["export", uri, "10", "--format", kind, "-o", tmp_path / "out", "--json", *(["--ema"] if ema else [])]
    assert rexctl(monkeypatch, *words) == 0
    values = json.loads(capsys.readouterr().out)
    (path,) = (tmp_path / "out").iterdir()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"rexnet_09-{digest[:8]}.{kind}" and path.stat().st_mode & 0o777 == 0o644
    assert (values["path"], values["sha256"], values["size_bytes"]) == (str(path), digest, path.stat().st_size)
    assert (values["model"], values["num_classes"], values["step"], values["job"]) == ("rexnet_09", 7, 10, "j-1")
    assert values["weights"] == ("ema" if ema else "model")
    wanted = averages if ema else weights
    assert_same(read_weights(path), wanted)
    cell = network("rexnet_09")
    assert load_weights(cell, read_weights(path), path.name) == []
    assert_same(arrays_of(cell), wanted)
    not_loaded, unknown = ms.load_param_into_net(  # MindCV's way
        network("rexnet_09"), ms.load_checkpoint(str(path), format=kind), strict_load=True
    )
    assert (not_loaded, unknown) == ([], [])


def test_same_weights_give_the_same_file_again(state: Path, tmp_path: Path) -> None:
    first = publish.publish(state, tmp_path, kind="ckpt", ema=False)
    assert publish.publish(state, tmp_path, kind="ckpt", ema=False) == first
    assert [str(path) for path in tmp_path.iterdir()] == [first.path]
    back = publish.publish(Path(first.path), tmp_path / "back", kind="safetensors", ema=False)
    assert_same(load_file(back.path), read_weights(first.path))


def test_file_of_that_name_with_other_content_is_left_alone(state: Path, tmp_path: Path) -> None:
    first = publish.publish(state, tmp_path, kind="safetensors", ema=False)
    Path(first.path).write_bytes(b"mine")
    with pytest.raises(SpecError, match="is there with other content"):
        publish.publish(state, tmp_path, kind="safetensors", ema=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


@pytest.mark.parametrize("model", MODELS)
def test_every_width_is_recognised_by_its_classifier(model: str) -> None:
    cell = network(model)
    arrays = {"cls.1.weight": np.zeros(tuple(cell.cls[1].weight.shape), np.float32)}
    assert publish.recognise(arrays, "x") == (model, NUM_CLASSES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: {"conv.weight": a["cls.1.weight"]}, "holds no ReXNet: there is no matrix cls.1.weight"),
        (lambda a: {**a, "cls.1.weight": np.zeros((7, 100), np.float32)}, "its classifier takes 100 features"),
        (lambda a: {n: v for n, v in a.items() if n != "cls.1.bias"}, "lacks 1 of the model's parameters: cls.1.bias"),
        (lambda a: {**a, "more": a["cls.1.bias"]}, "holds 1 arrays that the model does not know: more"),
    ],
)
def test_what_is_no_rexnet_is_refused_by_name(change: Any, said: str, weights: Arrays, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(change(weights), path)
    with pytest.raises(SpecError, match=said):
        publish.publish(path, tmp_path / "out", kind="ckpt", ema=False)
    assert not (tmp_path / "out").exists()


def test_averages_that_are_not_there_are_refused(
    weights: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(weights, tmp_path / STATE)
    writer = CheckpointStore(open_store(f"file://{tmp_path / 'store'}"), "j-1")
    writer.start_attempt(1)
    make_commit(writer, tmp_path, 1, 10, None, {STATE: tmp_path / STATE})
    uri = f"file://{tmp_path / 'store'}"
    assert rexctl(monkeypatch, "export", uri, "--ema", "-o", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.err == f"rexctl: {STATE} holds no moving averages (ema.*) (leave out --ema)\n"
    assert printed.out == "" and not (tmp_path / "out").exists()


def test_damaged_checkpoint_is_not_exported(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = CheckpointStore(open_store(f"file://{tmp_path / 'store'}"), "j-1")
    writer.start_attempt(1)
    made = make_commit(writer, tmp_path, 1, 10, None, {STATE: state})
    path = tmp_path / "store" / made.file(STATE).key
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    assert rexctl(monkeypatch, "export", f"file://{tmp_path / 'store'}", "-o", tmp_path / "out") == 1
    assert f"file {STATE} is altered" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "command line: the following arguments are required: --ckpt_path, --out"),
        (["--ckpt_path", "none.safetensors", "--out", "."], "there is no file 'none.safetensors'"),
        (["--ckpt_path", "x", "--out", ".", "--format", "onnx"], "invalid choice: 'onnx'"),
    ],
)
def test_mistake_ends_with_64_and_one_sentence(words: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "rexnet" / "publish.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("rexnet.publish: ")]
    assert done.returncode == Exit.CONFIG and len(lines) == 1 and said in lines[0]
