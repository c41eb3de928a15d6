"""The recipe: one frozen configuration object, loaded from a flat YAML file, overridable as `--key value`.

Keys, types and defaults are those of MindCV's `config.py` (v0.5.0), so its files mean here what they mean there; the
keys below "ours" are added. A value that this program does not support is refused by name, never ignored. No MindSpore
in here: the control plane reads recipes too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator

from jobs.errors import SpecError
from rexnet.architecture import MODELS
from rexnet.saving import parse_rule

CONFIGS = Path(__file__).parent / "configs"
# What decides neither the parameters of a step nor the data it sees: a change of these is no change of the run.
_NOT_IN_DIGEST = (
    "ckpt_keep_last", "ckpt_keep_every", "ckpt_keep_best", "data_dir", "ckpt_store", "distribute", "epoch_size",
    "max_steps", "ckpt_every", "val_interval", "val_while_train", "log_interval", "num_parallel_workers",
    "ckpt_save_dir", "ckpt_save_interval", "ckpt_save_policy", "keep_checkpoint_max", "dataset_sink_mode",
    "device_target", "eval_shuffle", "crop_pct", "val_split", "val_amp_level", "expected_top1", "expected_seconds",
)  # fmt: skip


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-6 as text; MindCV's files mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _pair(value: Any) -> Any:
    """A list in YAML, "0.08, 1.0" on the command line."""
    if isinstance(value, str):
        value = [part for part in re.split(r"[\s,()\[\]]+", value) if part]
    return tuple(_number(part) for part in value) if isinstance(value, list | tuple) else value


def _switch(value: Any) -> Any:
    """MindCV's command line takes yes, true and 1."""
    if isinstance(value, str):
        return {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}.get(value.lower(), value)
    return value


Real = Annotated[float, BeforeValidator(_number)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Zero = Annotated[float, BeforeValidator(_number), Field(ge=0, le=0)]
Range = Annotated[tuple[float, float], BeforeValidator(_pair)]
Channels = Annotated[tuple[float, float, float], BeforeValidator(_pair)]
Switch = Annotated[bool, BeforeValidator(_switch)]
AmpLevel = Literal["O0", "O1", "O2", "O3"]


class Recipe(BaseModel):
    """How one model is trained. Sizes in pixels, rates and shares as fractions, `batch_size` per device and step."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # system
    mode: Literal[0] = 0  # graph mode
    distribute: Switch = True  # under msrun; False: one process alone
    val_while_train: Switch = True
    val_interval: int = Field(default=1, ge=1)  # epochs between validations; the last epoch always has one
    log_interval: int = Field(default=100, ge=1)  # steps
    seed: int = Field(default=42, ge=0, lt=2**63)
    device_target: Literal["Ascend", "CPU"] = "Ascend"  # what the recipe was written for; the machine decides
    # data
    dataset: Literal["imagenet", "folder"] = "imagenet"  # the same: DIR/<split>/<class>/*
    data_dir: str = ""
    train_split: str = Field(default="train", min_length=1)
    val_split: str = Field(default="val", min_length=1)
    dataset_download: Annotated[Literal[False], BeforeValidator(_switch)] = False
    num_parallel_workers: int = Field(default=8, ge=1)  # threads that decode; never more than the rank has CPUs
    shuffle: Switch = True
    num_samples: int | None = Field(default=None, ge=1)  # so many of the training split, evenly spread over it
    batch_size: int = Field(default=128, ge=1)
    drop_remainder: Annotated[Literal[True], BeforeValidator(_switch)] = True
    # augmentation
    image_resize: int = Field(default=224, ge=8)
    scale: Range = (0.08, 1.0)  # area of the random crop, as a share of the image's
    ratio: Range = (0.75, 1.333)  # width over height of the random crop
    hflip: Share = 0.5
    vflip: Share = 0.0
    color_jitter: Real = Field(default=0.4, ge=0, le=1)  # brightness, contrast, saturation; without auto_augment only
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    auto_augment: str | None = None  # randaug-m9-mstd0.5 and its kin
    aug_splits: Literal[0] = 0
    re_prob: Share = 0.0  # random erasing
    re_scale: Range = (0.02, 0.33)
    re_ratio: Range = (0.3, 3.3)
    re_value: Literal["random"] | int = 0
    re_max_attempts: int = Field(default=10, ge=1)
    mean: Channels = (0.485 * 255, 0.456 * 255, 0.406 * 255)  # units of a pixel's 0..255
    std: Channels = (0.229 * 255, 0.224 * 255, 0.225 * 255)
    crop_pct: Real = Field(default=0.875, gt=0, le=1)
    mixup: Real = Field(default=0.0, ge=0)  # parameter of the beta distribution
    cutmix: Zero = 0.0
    cutmix_prob: Share = 1.0  # of mixing at all, in a step
    aug_repeats: Literal[0, 1] = 0
    # model
    model: str = "rexnet_09"
    num_classes: int = Field(default=1000, ge=2)
    in_channels: Literal[3] = 3
    drop_rate: Real = Field(default=0.0, ge=0, lt=1)
    drop_path_rate: Real = Field(default=0.0, ge=0, lt=1)
    pretrained: Annotated[Literal[False], BeforeValidator(_switch)] = False
    ckpt_path: str = ""  # start from the weights in this file (ours or MindCV's)
    resume_opt: Annotated[Literal[False], BeforeValidator(_switch)] = False
    keep_checkpoint_max: int = Field(default=10, ge=1)
    ckpt_save_dir: str = "./ckpt"
    ckpt_save_interval: int = Field(default=1, ge=1)  # epochs between the weights' files in ckpt_save_dir
    ckpt_save_policy: Literal["top_k", "latest_k"] | None = None  # MindCV's default is latest_k; the chain is ours
    epoch_size: int = Field(default=90, ge=1)
    dataset_sink_mode: Switch = True  # of no consequence here: the host feeds every step
    ema: Switch = False
    ema_decay: Real = Field(default=0.9999, ge=0, lt=1)
    clip_grad: Switch = False
    clip_value: Real = Field(default=15.0, gt=0)  # global norm
    layer_decay: None = None
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    # optimiser
    opt: Literal["sgd", "momentum", "adam", "adamw"] = "adam"
    momentum: Real = Field(default=0.9, ge=0, lt=1)
    weight_decay: Real = Field(default=1e-6, ge=0)
    use_nesterov: Switch = False
    weight_decay_filter: Literal["disable", "auto", "norm_and_bias"] = "disable"
    eps: Real = Field(default=1e-10, gt=0)
    # schedule
    scheduler: Literal["constant", "cosine_decay"] = "cosine_decay"
    lr: Real = Field(default=0.001, gt=0)
    min_lr: Real = Field(default=1e-6, ge=0)
    warmup_epochs: int = Field(default=3, ge=0)
    warmup_factor: Share = 0.0
    decay_epochs: int = Field(default=100, ge=1)
    decay_rate: Real = 0.9  # this and the next: of schedulers that are refused above
    multi_step_decay_milestones: list[int] = [30, 60, 90]
    lr_epoch_stair: Annotated[Literal[False], BeforeValidator(_switch)] = False
    num_cycles: Literal[1] = 1
    cycle_decay: Real = 1.0
    # loss
    loss: Literal["CE"] = "CE"
    label_smoothing: Real = Field(default=0.0, ge=0, lt=1)
    aux_factor: Zero = 0.0
    reduction: Literal["mean"] = "mean"
    # mixed precision
    amp_level: Literal["O0", "O2", "O3"] = "O0"  # on Ascend; the CPU computes in float32, and says so
    val_amp_level: AmpLevel = "O0"
    amp_cast_list: None = None
    loss_scale_type: Literal["fixed", "dynamic"] = "fixed"
    loss_scale: Real = Field(default=1.0, gt=0)  # of "dynamic": where it starts
    drop_overflow_update: Switch = False
    eval_shuffle: Annotated[Literal[False], BeforeValidator(_switch)] = False
    # ours: elasticity, length, checkpoints
    global_batch: int = Field(default=0, ge=0)  # kept on any number of devices; 0: batch_size * devices * accumulation
    scale_lr: Switch = False  # instead of accumulating, scale lr by (batch_size * devices) / global_batch
    shift_pixels: int = Field(default=0, ge=0)  # random translation in the place of the random crop
    max_corrupt: Share = 0.001  # share of the training images that may be unreadable
    max_steps: int = Field(default=0, ge=0)  # stop after so many steps; 0: epoch_size decides alone
    ckpt_every: str = "auto"  # 500 steps, 30 s, 10 min, 1 h, or auto: Daly's interval from measured cost and rate
    ckpt_keep_last: int = Field(default=5, ge=0)  # newest checkpoints that keep their state; 0: all do
    ckpt_keep_every: int = Field(default=0, ge=0)  # and every one at a multiple of so many steps
    ckpt_keep_best: int = Field(default=1, ge=0)  # and the best by top-1; one is made after each validation then
    fresh_head: Switch = False  # ckpt_path may be of another number of classes: the classifier starts anew
    ckpt_store: str = ""  # store URI of a bare run; empty: ./checkpoints
    # what a run of this recipe is expected to give
    expected_top1: Real | None = Field(default=None, ge=0, le=1)
    expected_seconds: Real | None = Field(default=None, gt=0)  # pure training time

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.model not in MODELS:
            near = _nearest_model(self.model)
            raise ValueError(f"model: no model {self.model!r}, did you mean {near!r}? there are {', '.join(MODELS)}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: {self.min_lr} is above lr {self.lr}")
        if self.auto_augment is not None and not self.auto_augment.startswith("randaug"):
            raise ValueError(f"auto_augment: {self.auto_augment!r} is not supported, randaug-... is")
        if self.auto_augment is not None:
            from rexnet.data.randaug import parse_randaug  # brings OpenCV along: only where it is asked for

            parse_randaug(self.auto_augment, mean=self.mean, interpolation=self.interpolation)
        if self.opt in ("adam", "adamw") and self.use_nesterov:
            raise ValueError(f"use_nesterov: not supported with opt {self.opt}, only with sgd and momentum")
        if self.mixup and self.batch_size % 2:
            raise ValueError(f"batch_size: mixup needs an even one, since neighbours are mixed, not {self.batch_size}")
        if self.global_batch and not self.scale_lr and self.gradient_accumulation_steps > 1:
            raise ValueError("gradient_accumulation_steps: global_batch decides it, leave one of the two out")
        try:
            parse_rule(self.ckpt_every)
        except SpecError as error:
            raise ValueError(f"ckpt_every: {error}") from error
        if self.fresh_head and not self.ckpt_path:
            raise ValueError("fresh_head: there is no other head without ckpt_path")
        if self.ckpt_save_policy == "top_k" and not self.val_while_train:
            raise ValueError("ckpt_save_policy: top_k needs val_while_train, which is off")
        for low, high, name in ((*self.scale, "scale"), (*self.ratio, "ratio"), (*self.re_scale, "re_scale"),
                                (*self.re_ratio, "re_ratio")):  # fmt: skip
            if not 0 < low <= high:
                raise ValueError(f"{name}: {low} to {high} is no range of positive numbers")
        return self

    def accumulation(self, num_devices: int) -> int:
        """Micro-batches that make one step of `global_batch` on so many devices. SpecError if it does not divide."""
        together = self.batch_size * num_devices
        if not self.global_batch or self.scale_lr:
            return self.gradient_accumulation_steps
        if self.global_batch % together:
            fitting = [b for b in range(1, self.global_batch + 1) if self.global_batch % (b * num_devices) == 0]
            near = ", ".join(map(str, sorted(sorted(fitting, key=lambda b: abs(b - self.batch_size))[:5])))
            valid = f"batch sizes that do: {near}" if fitting else "use a number of devices that divides it"
            raise SpecError(
                f"batch_size: {self.batch_size} on {num_devices} devices does not divide global_batch "
                f"{self.global_batch}",
                hint=valid,
            )
        return self.global_batch // together

    def lr_factor(self, num_devices: int) -> float:
        """What lr is multiplied by: 1, or with `scale_lr` how much larger than `global_batch` a step is."""
        if not (self.scale_lr and self.global_batch):
            return 1.0
        return self.batch_size * num_devices * self.gradient_accumulation_steps / self.global_batch

    def digest(self) -> str:
        """SHA-256 of what decides the parameters after a given step, 64 hex digits."""
        values = self.model_dump(mode="json", exclude=set(_NOT_IN_DIGEST))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def find_config(config: str) -> Path:
    """The file that `config` names: a path, or the bare name of a recipe in rexnet/configs. SpecError if none."""
    packaged = CONFIGS / f"{config}.yaml"
    for path in (Path(config), packaged):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise SpecError(f"config: there is no file {config!r}", hint=f"packaged recipes are {names}")


def make_recipe(values: dict[str, Any], source: str) -> Recipe:
    """A recipe of these values; SpecError names the first bad key, what was seen there and what is valid."""
    for key in values:
        if key not in Recipe.model_fields:
            raise _unknown(key, source)
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        seen = f"{where}: {first['input']!r} is no valid value: " if where else ""
        raise SpecError(f"{source}: {seen}{message[:1].lower() + message[1:]}") from error


def load_recipe(config: str, overrides: dict[str, str] | None = None) -> Recipe:
    """The recipe in the file that `config` names, with text overrides of the command line. Raises SpecError."""
    path = find_config(config)
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SpecError(f"{path}: expected keys and values, found {type(values).__name__}")
    values = {str(key): value for key, value in values.items()}
    for key, text in (overrides or {}).items():
        if key not in Recipe.model_fields:
            raise _unknown(key, "command line")
        values[key] = _parse(key, text)
    return make_recipe(values, str(path))


def parse_arguments(arguments: Sequence[str]) -> tuple[str, dict[str, str]]:
    """`--config C --key value --key=value ...` as (config, overrides). SpecError on anything else."""
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            raise SpecError(f"command line: {word!r} is out of place", hint="say --config NAME and --key value")
        key, equals, value = word.lstrip("-").partition("=")
        if not equals:
            if rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            elif _is_switch(key):
                value = "True"  # MindCV's command line has them bare, too
            else:
                raise SpecError(f"command line: --{key} has no value", hint=f"say --{key} VALUE")
        overrides["config" if key in ("c", "config") else key.replace("-", "_")] = value
    config = overrides.pop("config", None)
    if config is None:
        raise SpecError("command line: --config is missing", hint="say --config quickstart, or the path of a file")
    return config, overrides


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Rate of the step with this index (from 0): linear warm-up, then half a cosine down to min_lr, then min_lr.

    The warm-up begins at `warmup_factor * lr` before the first step and reaches lr with its last.
    """
    warmup, decay = recipe.warmup_epochs * steps_per_epoch, recipe.decay_epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (recipe.warmup_factor + (1 - recipe.warmup_factor) * (step + 1) / warmup)
    if recipe.scheduler == "constant":
        return recipe.lr
    progress = min(1.0, (step - warmup) / decay)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def _parse(key: str, text: str) -> Any:
    """The text of a command line as a value of that key's type; read as YAML where the text itself is none."""
    field = Recipe.model_fields[key]
    alone: dict[str, Any] = {key: (field.annotation, field)}
    model = create_model("Alone", **alone)
    if text in ("None", "null") and type(None) in (field.annotation, *get_args(field.annotation)):
        return None
    try:
        return getattr(model.model_validate({key: text}, strict=False), key)
    except ValidationError as error:
        try:
            return getattr(model.model_validate({key: yaml.safe_load(text)}, strict=False), key)
        except (ValidationError, yaml.YAMLError):
            problem = error.errors()[0]["msg"]
            raise SpecError(
                f"command line: --{key} {text!r} is no valid value: {problem[:1].lower() + problem[1:]}"
            ) from error


def _nearest_model(name: str) -> str:
    """By width where the name has a number (rexnet_x12, or timm's rexnet_130 for 1.3), else by spelling."""
    number = re.search(r"\d+", name)
    if number is None:
        return difflib.get_close_matches(name, MODELS, n=1, cutoff=0)[0]
    width = int(number[0]) / (10 if len(number[0]) < 3 else 100)
    return min(MODELS, key=lambda model: abs(MODELS[model] - width))


def _is_switch(key: str) -> bool:
    field = Recipe.model_fields.get(key.replace("-", "_"))
    return field is not None and (field.annotation is bool or get_args(field.annotation) in ((True,), (False,)))


def _unknown(key: str, source: str) -> SpecError:
    near = difflib.get_close_matches(key, Recipe.model_fields, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return SpecError(f"{source}: key {key!r} is unknown", hint=f"{guess}valid keys: {', '.join(Recipe.model_fields)}")
