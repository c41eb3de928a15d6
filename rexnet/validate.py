"""The validation program: counts of a checkpoint's weights over the validation split.

    python rexnet/validate.py -c quickstart --data_dir DIR --ckpt_path FILE [--json]
    msrun --worker_num 2 --local_worker_num 2 --join=True rexnet/validate.py -c ... (the same)

FILE is a `state.safetensors` of ours or a `.ckpt` of MindCV. Exit code 64 with one sentence if it does not fit.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jobs.contract import ENV_DATA_DIR, Exit
from jobs.errors import CorruptCheckpoint, RexError, SpecError
from rexnet.recipe import Recipe, load_recipe, parse_arguments
from rexnet.world import GraphCache, World, find_world, pin


def validate(recipe: Recipe, world: World, ckpt_path: str) -> dict[str, float]:
    """{"top1", "top5", "loss"} of the weights in that file, equal on all ranks. Raises SpecError, CorruptCheckpoint."""
    from rexnet.checkpoint import Arrays, read_arrays, set_arrays  # MindSpore from here on: CPUs are pinned
    from rexnet.data.folder import ImageFolder
    from rexnet.evaluate import Evaluator
    from rexnet.model import create_model
    from rexnet.session import start_device

    path = Path(ckpt_path)
    if not path.is_file():
        raise SpecError(f"ckpt_path: there is no file {ckpt_path!r}", hint="name a .safetensors or .ckpt file")
    data = ImageFolder(
        recipe.data_dir, "val", num_classes=recipe.num_classes, size=recipe.image_resize,
        interpolation=recipe.interpolation,
    )  # fmt: skip
    start_device(world)
    network = create_model(
        recipe.model, num_classes=recipe.num_classes, image_size=recipe.image_resize, seed=recipe.seed
    )
    arrays: Arrays
    if path.suffix == ".ckpt":
        import mindspore as ms

        try:
            arrays = {name: value.asnumpy() for name, value in ms.load_checkpoint(str(path)).items()}
        except (ValueError, RuntimeError) as error:
            raise CorruptCheckpoint(f"ckpt_path: {path} is no MindSpore checkpoint: {error}") from error
    else:
        arrays = read_arrays(path.read_bytes(), str(path))
    set_arrays(network.get_parameters(), arrays, str(path))
    return Evaluator(network, data, world, recipe.batch_size).run()


def main(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        config, overrides = parse_arguments([word for word in arguments if word != "--json"])
        if "ckpt_path" not in overrides:
            raise SpecError("command line: --ckpt_path is missing", hint="name a .safetensors or .ckpt file")
        ckpt_path = overrides.pop("ckpt_path")
        if ENV_DATA_DIR in os.environ:
            overrides.setdefault("data_dir", os.environ[ENV_DATA_DIR])
        recipe = load_recipe(config, overrides)
        world = find_world(os.environ, os.sched_getaffinity(0), distribute=recipe.distribute)
        if world.is_scheduler:
            from mindspore.communication import init

            init()
            return Exit.DONE
        pin(world)
        graphs = GraphCache(os.environ, recipe, world, program="validate")
        try:
            metrics = validate(recipe, world, ckpt_path)
            graphs.publish()
        finally:
            graphs.close()
    except RexError as error:
        print(f"rexnet.validate: {error}", file=sys.stderr)
        return Exit.CONFIG
    if world.is_first:
        text = " ".join(f"{key}={value:.4f}" for key, value in metrics.items())
        print(json.dumps(metrics, sort_keys=True) if as_json else text, flush=True)
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
