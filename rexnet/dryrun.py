"""What a run would do, said before it does it; reads no image, compiles nothing, imports no MindSpore.

    python -m rexnet.dryrun --config rexnet_09 [--devices 8] [--key value ...]
    rexnet/train.py --config rexnet_09 --dry-run

Devices are those of msrun, if it started us, else one.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import Exit
from jobs.errors import SpecError
from rexnet.cost import cost_of, memory_of
from rexnet.program import read_command_line, run
from rexnet.recipe import Recipe, learning_rate

MIB = 2**20
# ILSVRC 2012's classification task (Russakovsky et al., arXiv 1409.0575): what a recipe for `imagenet` means.
IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
# Keys that are accepted and change nothing here, or not on every device; shown if the recipe sets them.
WITHOUT_EFFECT = {
    "dataset_sink_mode": "of no consequence: the host feeds every step",
    "device_target": "not followed: the machine decides",
    "color_jitter": "of no effect with auto_augment, as in MindCV",
    "decay_rate": "of no effect: belongs to schedulers that are not supported",
    "multi_step_decay_milestones": "of no effect: belongs to schedulers that are not supported",
    "cycle_decay": "of no effect: there is one cycle",
    "num_parallel_workers": "an upper limit: never more than the rank has CPUs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSize:
    """Images in the training split; `words` say where the number comes from, or why there is none."""

    num_images: int | None
    words: str


def describe(recipe: Recipe, world_size: int) -> str:
    """The run on so many devices: configuration, batch, length, schedule, model, memory, what has no effect here.

    Raises SpecError if the batch does not divide, or the data set is there and does not fit the recipe.
    """
    accumulation = recipe.accumulation(world_size)
    global_batch = recipe.batch_size * world_size * accumulation
    data = training_images(recipe)
    parts = [
        "configuration (* differs from the default)",
        *_configuration(recipe),
        "",
        "batch",
        f"  {world_size} device(s) x {recipe.batch_size} images x {accumulation} accumulated = {global_batch} a step",
        "",
        "length",
        *_length(recipe, data, global_batch),
        "",
        "schedule",
        *_schedule(recipe, data, global_batch, world_size),
        "",
        "model",
        *_model(recipe),
        "",
        "memory of a device, estimated (parameters and their kin exact, activations: what the backward pass needs)",
        *_memory(recipe, accumulation),
        "",
        "accepted, but without effect here or on some devices",
        *_remarks(recipe),
    ]
    return "\n".join(parts)


def training_images(recipe: Recipe) -> DataSize:
    """How many images the training split has. SpecError if the folder is there and does not fit the recipe."""
    root = Path(recipe.data_dir) / recipe.train_split
    why = f"there is no folder {root}" if recipe.data_dir else "no data_dir is named"
    if recipe.data_dir and root.is_dir():
        from rexnet.data.folder import ImageFolder

        found = len(ImageFolder(recipe.data_dir, recipe.train_split, num_classes=recipe.num_classes))
        words, number = f"in {root}", found
    elif recipe.dataset == "imagenet" and recipe.num_classes == IMAGENET_CLASSES:
        words, number = f"assumed: ImageNet-1K's; {why}", IMAGENET_IMAGES
    else:
        known = f"num_samples says so; {why}" if recipe.num_samples else why
        return DataSize(num_images=recipe.num_samples, words=known)
    if recipe.num_samples is not None and recipe.num_samples < number:
        return DataSize(num_images=recipe.num_samples, words=f"num_samples, of {number:,} {words}")
    return DataSize(num_images=number, words=words)


def _configuration(recipe: Recipe) -> list[str]:
    lines = []
    for key, field in Recipe.model_fields.items():
        value, default = getattr(recipe, key), field.default
        differs = value != default
        lines.append(
            f"{'*' if differs else ' '} {key}: {_shown(value)}" + (f"  ({_shown(default)})" if differs else "")
        )
    return lines


def _length(recipe: Recipe, data: DataSize, global_batch: int) -> list[str]:
    if data.num_images is None:
        return [f"  images an epoch: unknown, {data.words}", f"  epochs: {recipe.epoch_size}; steps: unknown"]
    per_epoch, total = _steps(recipe, data.num_images, global_batch)
    lines = [
        f"  images an epoch: {data.num_images:,} ({data.words}), {data.num_images - per_epoch * global_batch} left out",
        f"  steps an epoch: {per_epoch:,}; in all {total:,} ({total / per_epoch:g} epochs, "
        f"{total * global_batch:,} images)",
    ]
    if recipe.max_steps and total == recipe.max_steps:
        lines.append(f"  max_steps ends it before epoch_size {recipe.epoch_size}")
    return lines


def _schedule(recipe: Recipe, data: DataSize, global_batch: int, world_size: int) -> list[str]:
    factor = recipe.lr_factor(world_size)
    lines = []
    if factor != 1:
        lines.append(f"  lr is scaled by {factor:g}: {recipe.lr:g} is for a global batch of {recipe.global_batch}")
    if data.num_images is None:
        peak, warmup = factor * recipe.lr, recipe.warmup_epochs
        end = factor * learning_rate(recipe, recipe.epoch_size - 1, 1)
        words = f"{warmup} epoch(s) of warm-up to {peak:.6g}, about {end:.6g} in the last epoch"
        return [*lines, f"  {recipe.scheduler}: {words}"]
    per_epoch, total = _steps(recipe, data.num_images, global_batch)
    warm = recipe.warmup_epochs * per_epoch
    points = {"first step": 0, "end of warm-up": warm - 1, "middle": total // 2, "last step": total - 1}
    for name, step in points.items():
        if 0 <= step < total:
            rate = factor * learning_rate(recipe, step, per_epoch)
            lines.append(f"  {name + ':':16}step {step + 1:>9,}, epoch {step // per_epoch + 1:>4}, lr {rate:.6g}")
    decayed = recipe.warmup_epochs + recipe.decay_epochs
    if recipe.scheduler == "cosine_decay" and total < decayed * per_epoch:
        lines.append(f"  the run ends before the decay does: {decayed} epochs")
    return lines


def _model(recipe: Recipe) -> list[str]:
    cost = cost_of(recipe.model, num_classes=recipe.num_classes, image_size=recipe.image_resize)
    return [
        f"  {recipe.model}: {cost.trainable:,} parameters and {cost.statistics:,} moving statistics",
        f"  {cost.multiply_adds / 1e9:.3f} G multiply-adds for an image of {recipe.image_resize} px",
    ]


def _memory(recipe: Recipe, accumulation: int) -> list[str]:
    lines = []
    fixed = memory_of(recipe, accumulation=accumulation)
    for name in ("parameters", "gradients", "optimiser", "ema"):
        lines.append(f"  {name + ':':11}{getattr(fixed, name) / MIB:>9,.1f} MiB")
    half = recipe.amp_level in ("O2", "O3")
    for words, memory in {
        "on CPU with our kernels": memory_of(recipe, accumulation=accumulation, fused=True),
        "on CPU with built-in operators": fixed,
        f"on Ascend, activations in {'float16' if half else 'float32'}": memory_of(
            recipe, accumulation=accumulation, half=half
        ),
    }.items():
        an_image = memory.activations / recipe.batch_size / MIB
        lines.append(f"  {'in all:':11}{memory.total / MIB:>9,.1f} MiB {words}, {an_image:,.1f} MiB an image")
    return lines


def _remarks(recipe: Recipe) -> list[str]:
    lines = []
    if recipe.amp_level != "O0":
        lines.append(f"  amp_level {recipe.amp_level}: on Ascend only; a CPU computes in float32")
    if recipe.val_amp_level != "O0":
        lines.append(f"  val_amp_level {recipe.val_amp_level}: on Ascend only; a CPU computes in float32")
    for key, words in WITHOUT_EFFECT.items():
        if key in recipe.model_fields_set and not (key == "color_jitter" and recipe.auto_augment is None):
            lines.append(f"  {key} {_shown(getattr(recipe, key))}: {words}")
    return lines or ["  nothing"]


def _steps(recipe: Recipe, num_images: int, global_batch: int) -> tuple[int, int]:
    """Steps an epoch and in all. SpecError if there are fewer images than one step takes."""
    per_epoch = num_images // global_batch
    if not per_epoch:
        raise SpecError(
            f"batch_size: a global batch of {global_batch} is larger than the {num_images} samples",
            hint="lower batch_size or use fewer workers",
        )
    planned = recipe.epoch_size * per_epoch
    return per_epoch, min(planned, recipe.max_steps) if recipe.max_steps else planned


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{part:g}" for part in value) + "]"
    return f"{value:g}" if isinstance(value, float) else repr(value) if value == "" else str(value)


def body(arguments: list[str]) -> int:
    asked = read_command_line(arguments, switches=("dry_run",), options=("devices",))
    devices = asked.options.get("devices", os.environ.get("MS_WORKER_NUM", "1"))
    if not devices.isdecimal() or not int(devices):
        raise SpecError(f"command line: --devices {devices!r} is no number of devices", hint="say --devices 8")
    if os.environ.get("RANK_ID", "0") == "0" and os.environ.get("MS_ROLE") != "MS_SCHED":  # under msrun: once
        print(describe(asked.recipe, int(devices)))
    return Exit.DONE


def main(arguments: list[str]) -> int:
    return run("dryrun", body, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
