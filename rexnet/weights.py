"""Weights from files into the model, strictly: no name too many, none too few, every shape right.

Two formats: MindSpore's `.ckpt`, MindCV's published files among them, and our checkpoints' `.safetensors`. Both may
hold a trainer's state besides the model. That is recognised by name and left out; whatever else is not the model's is
an error.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.errors import CorruptCheckpoint, SpecError
from rexnet.checkpoint import Arrays, read_arrays
from rexnet.recipe import Recipe

if TYPE_CHECKING:
    from mindspore import Parameter, nn

    from rexnet.model import ReXNet

log = logging.getLogger(__name__)
EMA_PREFIX = "ema."  # before the name of what is averaged
HEAD_PREFIX = "cls.1."
SHOWN_NAMES = 10
# A trainer's state: one array per parameter under these prefixes, and scalars under these names.
# Ours (rexnet/optimizer.py, rexnet/step.py): momentum. adam_mean. adam_square. ema.
# MindSpore 2.10 (nn/optim, boost): SGD accum. stat., Momentum moments., Adam moment1. moment2. vhat., AdamWeightDecay
# and MindCV's AdamW adam_m. adam_v., Lamb lamb_m. lamb_v., RMSProp mean_grad. mean_square. moment., gradient
# accumulation grad_accumulation.; MindCV: Lion lion_m., NAdam nadam_m. nadam_v., EMA ema.
STATE_PREFIXES = (EMA_PREFIX, "momentum.", "adam_mean.", "adam_square.", "accum.", "stat.", "moments.", "moment1.",
                  "moment2.", "vhat.", "adam_m.", "adam_v.", "lamb_m.", "lamb_v.", "mean_grad.", "mean_square.",
                  "moment.", "grad_accumulation.", "lion_m.", "nadam_m.", "nadam_v.")  # fmt: skip
STATE_NAMES = frozenset((
    "adam_updates", "loss_scale", "loss_scale_good_steps",  # ours
    "learning_rate", "momentum", "global_step", "beta1_power", "beta2_power", "mu_schedule", "scale_sense",
    "current_iterator_step", "last_overflow_iterator_step", "accumulation_step", "epoch_num", "step_num", "updates",
))  # fmt: skip


def is_state(name: str, model_names: Container[str]) -> bool:
    """Whether this name is a trainer's: one of the scalars, or a known prefix before a name of the model's."""
    return name in STATE_NAMES or any(
        name.startswith(prefix) and name[len(prefix) :] in model_names for prefix in STATE_PREFIXES
    )


def read_weights(path: str | Path) -> Arrays:
    """All arrays in the file, by name. SpecError if there is none or its kind is unknown, CorruptCheckpoint."""
    path = Path(path)
    if not path.is_file():
        raise SpecError(f"ckpt_path: there is no file {str(path)!r}", hint="name a .safetensors or .ckpt file")
    if path.suffix == ".safetensors":
        return read_arrays(path.read_bytes(), str(path))
    if path.suffix != ".ckpt":
        raise SpecError(f"ckpt_path: {path} is neither .safetensors nor .ckpt", hint="MindIR files hold no names")
    import mindspore as ms

    try:
        loaded = ms.load_checkpoint(str(path))
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CorruptCheckpoint(f"ckpt_path: {path} is no MindSpore checkpoint: {reason}") from error
    return {name: np.asarray(value) if isinstance(value, str) else value.asnumpy() for name, value in loaded.items()}


def set_parameters(parameters: Iterable[Parameter], arrays: Arrays, source: str, *, head_hint: str = "") -> None:
    """Give every parameter the array of its name. SpecError, and nothing is set, unless names and shapes agree.

    `head_hint` is the hint where the classifier alone is of another shape.
    """
    import mindspore as ms

    wanted = {parameter.name: parameter for parameter in parameters}
    for problem, names in (
        ("lacks {} of the model's parameters", [name for name in wanted if name not in arrays]),
        ("holds {} arrays that the model does not know", [name for name in arrays if name not in wanted]),
    ):
        if names:
            raise SpecError(
                f"{source} {problem.format(len(names))}: {_shown(names)}",
                hint="the recipe's model must be that of the checkpoint",
            )
    for name, parameter in wanted.items():
        seen, shape = arrays[name], tuple(parameter.shape)
        if seen.shape != shape:
            raise SpecError(
                f"{source}: {name} has shape {seen.shape}, the model wants {shape}",
                hint=head_hint
                if head_hint and name.startswith(HEAD_PREFIX)
                else "a checkpoint of another width? model and num_classes must be those of the checkpoint",
            )
        if not np.can_cast(seen.dtype, _dtype(parameter), "safe"):
            raise SpecError(f"{source}: {name} is {seen.dtype}, the model wants {_dtype(parameter)}")
    for name, parameter in wanted.items():
        parameter.set_data(ms.Tensor(arrays[name].astype(_dtype(parameter))))


def load_weights(
    network: nn.Cell, arrays: Arrays, source: str, *, fresh_head: bool = False, ema: bool = False
) -> list[str]:
    """Set the network's parameters from a checkpoint's arrays; returns the names left at their first values.

    A trainer's state is left out. With `ema` the averages under `ema.` are taken; batch norm's moving statistics
    come from the plain names where no average of them is kept. With `fresh_head` the classifier keeps its first values
    if its shape differs. SpecError lists missing or unknown names, or names the first parameter of another shape.
    """
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    chosen = {name: array for name, array in arrays.items() if not is_state(name, parameters)}
    if ema:
        averages = {name: arrays[EMA_PREFIX + name] for name in parameters if EMA_PREFIX + name in arrays}
        absent = [name for name, one in parameters.items() if one.requires_grad and name not in averages]
        if absent:
            raise SpecError(
                f"{source} lacks the moving averages (ema.*) of {len(absent)} parameters: {_shown(absent)}",
                hint="say --ema False for the weights themselves",
            )
        chosen |= averages
    fresh: list[str] = []
    if fresh_head:
        head = [name for name in parameters if name.startswith(HEAD_PREFIX)]
        if any(name in chosen and chosen[name].shape != tuple(parameters[name].shape) for name in head):
            fresh = head
    for name in fresh:
        chosen.pop(name, None)
        del parameters[name]
    set_parameters(
        parameters.values(), chosen, source,
        head_hint="num_classes must be that of the checkpoint; to train another, say --fresh_head True",
    )  # fmt: skip
    log.info("action=weights-loaded source=%s arrays=%d ema=%s fresh=%s", source, len(chosen), ema, fresh or "none")
    return fresh


def load_network(recipe: Recipe) -> ReXNet:
    """The recipe's model with the weights of `ckpt_path`, ready to be asked: the averages if the recipe says `ema`."""
    from rexnet.model import create_model

    arrays = read_weights(recipe.ckpt_path)
    network = create_model(
        recipe.model, num_classes=recipe.num_classes, image_size=recipe.image_resize, seed=recipe.seed
    )
    load_weights(network, arrays, recipe.ckpt_path, ema=recipe.ema)
    network.set_train(False)
    return network


def _dtype(parameter: Parameter) -> np.dtype[np.generic]:
    return np.dtype(str(parameter.dtype).lower())


def _shown(names: list[str]) -> str:
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")
