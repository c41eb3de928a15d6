"""The weights of a checkpoint as a file of their own, with MindCV's names, for whoever takes them elsewhere.

    python -m rexnet.publish --ckpt_path FILE --format ckpt|safetensors --out DIR [--ema] [--json]

FILE is a `state.safetensors` of ours, or a `.ckpt` of ours or MindCV's; what is a trainer's stays behind. The file is
named `<model>-<first 8 hex of its sha256>.ckpt` or `.safetensors`; the same weights give the same bytes. Exit codes are
those of `jobs.contract.Exit`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from safetensors.numpy import save_file

from jobs.contract import Exit
from jobs.errors import CorruptCheckpoint, SpecError
from rexnet.architecture import MODELS, last_channels
from rexnet.checkpoint import Arrays, copy_arrays
from rexnet.export import built_in_operators
from rexnet.program import run
from rexnet.weights import EMA_PREFIX, HEAD_PREFIX, load_weights, read_weights

FORMATS = ("ckpt", "safetensors")
_SMALLEST_IMAGE = 32  # the size of images shapes no parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The file, read back after it was written. `weights` is "ema" for the averages, else "model"."""

    path: str
    sha256: str
    size_bytes: int
    model: str
    num_classes: int
    weights: str


def recognise(arrays: Arrays, source: str) -> tuple[str, int]:
    """(model, num_classes) by the classifier's shape, which no two widths share. SpecError if it is no ReXNet's."""
    name = f"{HEAD_PREFIX}weight"
    if name not in arrays or arrays[name].ndim != 2:
        raise SpecError(f"{source} holds no ReXNet: there is no matrix {name}", hint="other models are not published")
    num_classes, features = arrays[name].shape
    models = [model for model, width in MODELS.items() if last_channels(width) == features]
    if not models:
        raise SpecError(
            f"{source} holds no ReXNet that we know: its classifier takes {features} features",
            hint=f"there are {', '.join(MODELS)}",
        )
    return models[0], num_classes


def publish(source: Path, folder: Path, *, kind: str, ema: bool) -> Published:
    """Write the weights to `folder`, whole and read back, or not at all.

    Raises:
        SpecError: `source` is no checkpoint of a ReXNet, array by array; or another file has that name.
        CorruptCheckpoint: `source` cannot be read; or what was read back is not what was written.
    """
    from rexnet.model import create_model

    loaded = read_weights(source)
    model, num_classes = recognise(loaded, source.name)
    with built_in_operators():
        network = create_model(model, num_classes=num_classes, image_size=_SMALLEST_IMAGE, seed=0)
    if ema and not any(name.startswith(EMA_PREFIX) for name in loaded):
        raise SpecError(f"{source.name} holds no moving averages (ema.*)", hint="leave out --ema")
    load_weights(network, loaded, source.name, ema=ema)
    arrays = copy_arrays(network.get_parameters())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=folder) as scratch:
        aside = Path(scratch) / f"weights.{kind}"
        _write(arrays, aside)
        sha256 = _checked(aside, arrays)
        target = folder / f"{model}-{sha256[:8]}.{kind}"
        _name(aside, target, sha256)
    if _sha256(target) != sha256:
        raise CorruptCheckpoint(f"{target} is not what was written to it", hint="check the disk and try again")
    return Published(
        path=str(target), sha256=sha256, size_bytes=target.stat().st_size, model=model, num_classes=num_classes,
        weights="ema" if ema else "model",
    )  # fmt: skip


def _write(arrays: Arrays, path: Path) -> None:
    """The file, durable and readable by all."""
    if path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        import mindspore as ms

        ms.save_checkpoint([{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()], str(path))
    path.chmod(0o644)  # MindSpore leaves it read-only
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _checked(path: Path, arrays: Arrays) -> str:
    """The sha256 of the file, which holds these arrays and no others, to the bit; CorruptCheckpoint if not."""
    before = _sha256(path)
    there = read_weights(path)
    same = there.keys() == arrays.keys() and all(
        there[name].dtype == array.dtype
        and there[name].shape == array.shape
        and there[name].tobytes() == array.tobytes()
        for name, array in arrays.items()
    )
    if not same or _sha256(path) != before:
        raise CorruptCheckpoint(
            f"{path.name} reads back other than it was written", hint="check the disk and try again"
        )
    return before


def _name(aside: Path, target: Path, sha256: str) -> None:
    """Give it its name, which is free or that of the same bytes."""
    try:
        os.link(aside, target)
    except FileExistsError:
        if _sha256(target) != sha256:
            raise SpecError(f"{target} is there with other content", hint="move it away") from None
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError(f"command line: {message}", hint="see --help")


def body(arguments: list[str]) -> int:
    parser = _Parser(prog="rexnet.publish", description="The weights of a checkpoint as a file of their own.")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="a state.safetensors or .ckpt")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the file")
    parser.add_argument("--ema", action="store_true", help="the moving averages of the weights")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    import mindspore as ms

    ms.set_device("CPU")  # nothing is computed; an accelerator may be busy
    done = publish(asked.ckpt_path, asked.out, kind=asked.format, ema=asked.ema)
    if asked.json:
        print(json.dumps(asdict(done), sort_keys=True), flush=True)
    else:
        print(f"{done.path}: {done.model}, {done.num_classes} classes, sha256 {done.sha256}", flush=True)
    return Exit.DONE


def main(arguments: list[str]) -> int:
    return run("publish", body, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
