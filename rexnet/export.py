"""A trained model as MindIR, MindSpore's format for inference.

    python -m rexnet.export --config rexnet_09 --ckpt_path FILE --out FILE.mindir [--batch_size N] [--json]

The graph takes images (N, 3, size, size) float32, normalised with the recipe's mean and std, and gives logits
(N, num_classes); N is 1 unless `--batch_size` says otherwise. It holds built-in operators alone, so it runs wherever
MindSpore or MindSpore Lite does. Exit codes are those of `jobs.contract.Exit`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jobs.contract import Exit
from jobs.errors import SpecError
from rexnet.kernels import BUILTIN, ENV_KERNELS
from rexnet.program import read_command_line, run
from rexnet.recipe import Recipe
from rexnet.world import find_world, pin

SUFFIX = ".mindir"


def export(recipe: Recipe, batch_size: int, out: str | Path) -> Path:
    """Write the model with the weights of `ckpt_path` to `out`, whole or not at all. SpecError, CorruptCheckpoint."""
    out = Path(out)
    if out.suffix != SUFFIX:
        raise SpecError(f"out: {out} does not end in {SUFFIX}", hint="MindIR is the one format there is")
    if not out.absolute().parent.is_dir():
        raise SpecError(f"out: there is no folder {out.absolute().parent}", hint="make it, or name another")
    import mindspore as ms
    import numpy as np

    from rexnet.weights import load_network

    images = ms.Tensor(np.zeros((batch_size, 3, recipe.image_resize, recipe.image_resize), np.float32))
    with built_in_operators(), tempfile.TemporaryDirectory(prefix=".export-", dir=out.absolute().parent) as folder:
        aside = Path(folder) / out.name
        ms.export(load_network(recipe), images, file_name=str(aside), file_format="MINDIR")
        aside.chmod(0o644)  # MindSpore leaves it read-only
        aside.replace(out)
    return out


@contextmanager
def built_in_operators() -> Iterator[None]:
    """Models made in here do without our C++ operators, which are files of this machine."""
    before = os.environ.get(ENV_KERNELS)
    os.environ[ENV_KERNELS] = BUILTIN
    try:
        yield
    finally:
        del os.environ[ENV_KERNELS]
        if before is not None:
            os.environ[ENV_KERNELS] = before


def body(arguments: list[str]) -> int:
    asked = read_command_line(
        arguments, switches=("json",), options=("out", "batch_size"), needs=("ckpt_path",)
    )  # fmt: skip
    out, number = asked.options.get("out"), asked.options.get("batch_size", "1")
    if out is None:
        raise SpecError("command line: --out is missing", hint="say --out FILE.mindir")
    if not number.isdecimal() or not int(number):
        raise SpecError(f"command line: --batch_size {number!r} is no number of images", hint="say --batch_size 1")
    world = find_world(os.environ, os.sched_getaffinity(0), distribute=False)
    pin(world)
    from rexnet.device import start_device  # MindSpore from here on: CPUs are pinned

    start_device(world)
    path, recipe = export(asked.recipe, int(number), out), asked.recipe
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    values = {
        "out": str(path), "sha256": sha256, "size_bytes": path.stat().st_size, "model": recipe.model,
        "input": [int(number), 3, recipe.image_resize, recipe.image_resize],
        "output": [int(number), recipe.num_classes],
        "mean": recipe.mean, "std": recipe.std, "weights": "ema" if recipe.ema else "model",
    }  # fmt: skip
    if "json" in asked.switches:
        print(json.dumps(values, sort_keys=True), flush=True)
    else:
        print(
            f"{path}: {recipe.model}, input {values['input']}, output {values['output']}, sha256 {sha256}", flush=True
        )
    return Exit.DONE


def main(arguments: list[str]) -> int:
    return run("export", body, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
