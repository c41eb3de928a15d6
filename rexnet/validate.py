"""The validation program: counts of a checkpoint's weights over the validation split, alone or on several ranks.

    python rexnet/validate.py -c rexnet_09 --data_dir DIR --ckpt_path FILE [--per_class] [--json]
    msrun --worker_num 2 --local_worker_num 2 --join=True rexnet/validate.py -c rexnet_09 ... (the same)

FILE is a `state.safetensors` of ours or a `.ckpt` of ours or MindCV's; a recipe with `ema` means its averages, as in
MindCV. Top-1 and top-5 are shares, the loss is the cross entropy without label smoothing. Exit codes are those of
`jobs.contract.Exit`: 64 with one sentence for what does not fit.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jobs.contract import Exit
from rexnet.graphs import GraphCache
from rexnet.program import read_command_line, run
from rexnet.recipe import Recipe
from rexnet.world import World, find_world, pin

if TYPE_CHECKING:
    from rexnet.evaluate import ClassResult, Counts


def validate(recipe: Recipe, world: World) -> tuple[Counts, list[str], dict[str, str]]:
    """Counts of the weights in `ckpt_path`, equal on all ranks; the classes' names; this rank's corrupt images.

    Raises RexError.
    """
    from rexnet.data.batches import EvalBatches
    from rexnet.data.folder import ImageFolder

    data = ImageFolder(recipe.data_dir, recipe.val_split, num_classes=recipe.num_classes)
    from rexnet.device import mix_precision, start_device  # MindSpore from here on: CPUs are pinned
    from rexnet.evaluate import Evaluator
    from rexnet.weights import load_network

    device = start_device(world)
    network = load_network(recipe)
    note = mix_precision(network, recipe.model_copy(update={"amp_level": recipe.val_amp_level}), device)
    if note and world.is_first:
        print(f"rexnet.validate: val_{note}", file=sys.stderr, flush=True)
    with EvalBatches(recipe, data, batch_size=recipe.batch_size, rank=world.rank, world_size=world.size) as batches:
        counts = Evaluator(network, batches, world, data.classes).count()
        return counts, list(data.classes), batches.corrupt


def show_classes(classes: list[ClassResult]) -> str:
    """A table of one line per class."""
    width = max(len("class"), *(len(one.name) for one in classes))
    lines = [f"{'class':{width}}  samples    top1     loss"]
    for one in classes:
        top1, loss = (" " * 5 + "-" if value is None else f"{value:.4f}" for value in (one.top1, one.loss))
        lines.append(f"{one.name:{width}}  {one.num_samples:7d}  {top1:>6}  {loss:>7}")
    return "\n".join(lines)


def as_json(counts: Counts, names: list[str], recipe: Recipe) -> str:
    """All that was counted; a loss that is not finite is null."""
    values = {
        **{key: value if math.isfinite(value) else None for key, value in counts.metrics().items()},
        "num_samples": counts.num_samples,
        "ckpt_path": recipe.ckpt_path,
        "weights": "ema" if recipe.ema else "model",
        "classes": [
            {**asdict(one), "loss": one.loss if one.loss is not None and math.isfinite(one.loss) else None}
            for one in counts.classes(names)
        ],
    }
    return json.dumps(values, sort_keys=True, allow_nan=False)


def body(arguments: list[str]) -> int:
    asked = read_command_line(arguments, switches=("json", "per_class"), needs=("ckpt_path",))
    recipe = asked.recipe
    world = find_world(os.environ, os.sched_getaffinity(0), distribute=recipe.distribute)
    if world.is_scheduler:
        from mindspore.communication import init

        init()
        return Exit.DONE
    pin(world)
    graphs = GraphCache(os.environ, recipe, world, program="validate")
    try:
        counts, names, corrupt = validate(recipe, world)
        graphs.publish()
    finally:
        graphs.close()
    for name, reason in corrupt.items():
        print(f"rexnet.validate: {name} is left out, it is corrupt: {reason}", file=sys.stderr, flush=True)
    if not world.is_first:
        return Exit.DONE
    if "json" in asked.switches:
        print(as_json(counts, names, recipe), flush=True)
        return Exit.DONE
    print(" ".join(f"{key}={value:.4f}" for key, value in counts.metrics().items()), flush=True)
    if "per_class" in asked.switches:
        print(show_classes(counts.classes(names)), flush=True)
    return Exit.DONE


def main(arguments: list[str]) -> int:
    return run("validate", body, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
