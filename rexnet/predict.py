"""What is in these pictures: the five most probable classes of each, with names.

    python -m rexnet.predict --config rexnet_09 --ckpt_path FILE [--data_dir DIR | --classes FILE] [--json] IMAGE...

Names come from the folders of DIR's validation or training split, or from a file with one name a line, in the order
of the classes' numbers; else the numbers serve. Images go through the transform of validation: shorter side resized,
centre cropped. Exit codes are those of `jobs.contract.Exit`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from jobs.contract import Exit
from jobs.errors import SpecError
from rexnet.data.crop import centre_crop
from rexnet.data.decode import CorruptImage
from rexnet.program import CommandLine, read_command_line, run
from rexnet.recipe import Recipe
from rexnet.world import find_world, pin

if TYPE_CHECKING:
    from rexnet.model import ReXNet

Array = np.ndarray[Any, Any]
NUM_BEST = 5
LARGEST_BATCH = 32


def read_image(path: str, recipe: Recipe) -> Array:
    """(size, size, 3) uint8, as validation sees the file. SpecError if it cannot be read as an image."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SpecError(f"image: {path!r} cannot be read: {error.strerror}") from error
    try:
        return centre_crop(data, size=recipe.image_resize, crop_pct=recipe.crop_pct, interpolation=recipe.interpolation)
    except CorruptImage as error:
        raise SpecError(f"image: {path!r} is no image that can be decoded: {error}") from error


def class_names(recipe: Recipe, classes_file: str | None) -> list[str]:
    """A name for each class. SpecError if their number is not the recipe's."""
    if classes_file is not None:
        try:
            names = [line.strip() for line in Path(classes_file).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"classes: {classes_file!r} cannot be read as text: {error}") from error
        source = classes_file
    elif recipe.data_dir:
        splits = [Path(recipe.data_dir) / split for split in (recipe.val_split, recipe.train_split)]
        root = next((folder for folder in splits if folder.is_dir()), None)
        if root is None:
            raise SpecError(
                f"data_dir: there is neither {splits[0]} nor {splits[1]}", hint="say --classes FILE, or leave it out"
            )
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        source = str(root)
    else:
        return [str(number) for number in range(recipe.num_classes)]
    if len(names) != recipe.num_classes:
        raise SpecError(
            f"num_classes: {source} names {len(names)} classes and the recipe says {recipe.num_classes}",
            hint="set num_classes to that of the weights, and name its classes",
        )
    return names


def predict(network: ReXNet, images: list[Array], recipe: Recipe) -> Array:
    """(len(images), num_classes) float64: the probability of each class."""
    from mindspore import Tensor

    from rexnet.data.augment import Normalise

    normalise = Normalise(recipe.mean, recipe.std)
    size = min(len(images), LARGEST_BATCH)
    found = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        batch = np.zeros((size, 3, recipe.image_resize, recipe.image_resize), np.float32)  # one shape, one graph
        for image, out in zip(part, batch, strict=False):
            normalise(image, out)
        logits = network(Tensor(batch)).asnumpy()[: len(part)].astype(np.float64)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        found.append(powers / powers.sum(1, keepdims=True))
    return np.concatenate(found)


def best(probabilities: Array, names: list[str]) -> list[dict[str, Any]]:
    """The most probable classes of one image, best first; of equals the lower number."""
    order = np.argsort(-probabilities, kind="stable")[:NUM_BEST]
    return [{"class": int(i), "name": names[i], "probability": float(probabilities[i])} for i in order]


def body(arguments: list[str]) -> int:
    asked = read_command_line(arguments, switches=("json",), options=("classes",), words="image", needs=("ckpt_path",))
    names = class_names(asked.recipe, asked.options.get("classes"))
    images = [read_image(path, asked.recipe) for path in asked.words]
    world = find_world(os.environ, os.sched_getaffinity(0), distribute=False)
    pin(world)
    from rexnet.device import start_device  # MindSpore from here on: CPUs are pinned
    from rexnet.weights import load_network

    start_device(world)
    probabilities = predict(load_network(asked.recipe), images, asked.recipe)
    show(asked, [best(row, names) for row in probabilities])
    return Exit.DONE


def show(asked: CommandLine, answers: list[list[dict[str, Any]]]) -> None:
    if "json" in asked.switches:
        values = [{"image": path, "best": answer} for path, answer in zip(asked.words, answers, strict=True)]
        print(json.dumps(values, sort_keys=True), flush=True)
        return
    for path, answer in zip(asked.words, answers, strict=True):
        print(path)
        for one in answer:
            print(f"  {one['probability']:.4f}  {one['name']}", flush=True)


def main(arguments: list[str]) -> int:
    return run("predict", body, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
