"""The recipe: one frozen configuration object, loaded from a flat YAML file, overridable as `--key value`.

Key names are MindCV's where it has one, so its files read the same way. No MindSpore in here: the control plane reads
recipes too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from jobs.errors import SpecError

MODELS = {"rexnet_09": 0.9, "rexnet_10": 1.0, "rexnet_13": 1.3, "rexnet_15": 1.5, "rexnet_20": 2.0}  # name: width
CONFIGS = Path(__file__).parent / "configs"
# What decides neither the parameters of a step nor the data it sees: a change of these is no change of the run.
_NOT_IN_DIGEST = ("data_dir", "ckpt_store", "distribute", "epoch_size", "max_steps", "ckpt_every_steps", "val_interval",
                  "expected_top1", "expected_seconds")  # fmt: skip


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-6 as text; MindCV's files mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Real = Annotated[float, BeforeValidator(_number)]


class Recipe(BaseModel):
    """How one model is trained. Sizes in pixels, rates and shares as fractions, `batch_size` per device."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # system
    distribute: bool = True  # under msrun; False: one process alone
    seed: int = Field(default=42, ge=0, lt=2**63)
    # data
    dataset: Literal["folder"] = "folder"
    data_dir: str = ""
    batch_size: int = Field(default=64, ge=1)
    image_resize: int = Field(default=224, ge=8)
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"
    shift_pixels: int = Field(default=0, ge=0)  # random translation, each axis up to this
    hflip: Real = Field(default=0.0, ge=0, le=1)  # probability of a mirror image
    # model
    model: str = "rexnet_09"
    num_classes: int = Field(default=1000, ge=2)
    drop_rate: Real = Field(default=0.0, ge=0, lt=1)
    # length
    epoch_size: int = Field(default=90, ge=1)
    max_steps: int = Field(default=0, ge=0)  # stop after so many steps; 0: epoch_size decides alone
    val_interval: int = Field(default=1, ge=1)  # epochs between validations; the last epoch always has one
    # loss, schedule, optimiser
    loss: Literal["CE"] = "CE"
    label_smoothing: Real = Field(default=0.0, ge=0, lt=1)
    scheduler: Literal["cosine_decay", "constant"] = "cosine_decay"
    lr: Real = Field(default=0.5, gt=0)
    min_lr: Real = Field(default=1e-6, ge=0)
    warmup_epochs: int = Field(default=0, ge=0)
    decay_epochs: int = Field(default=90, ge=1)
    opt: Literal["sgd", "momentum"] = "sgd"
    momentum: Real = Field(default=0.9, ge=0, lt=1)
    use_nesterov: bool = True
    weight_decay: Real = Field(default=0.0, ge=0)  # on weights of convolutions and of the classifier only
    # checkpoints
    ckpt_every_steps: int = Field(default=100, ge=1)
    ckpt_store: str = ""  # store URI of a bare run; empty: ./checkpoints
    # what a run of this recipe is expected to give
    expected_top1: Real | None = Field(default=None, ge=0, le=1)
    expected_seconds: Real | None = Field(default=None, gt=0)  # pure training time

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.model not in MODELS:
            raise ValueError(f"model: no model {self.model!r}, there are {', '.join(MODELS)}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: {self.min_lr} is above lr {self.lr}")
        return self

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
            if not rest:
                raise SpecError(f"command line: --{key} has no value", hint=f"say --{key} VALUE")
            value = rest.pop(0)
        overrides["config" if key in ("c", "config") else key.replace("-", "_")] = value
    config = overrides.pop("config", None)
    if config is None:
        raise SpecError("command line: --config is missing", hint="say --config quickstart, or the path of a file")
    return config, overrides


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Rate of the step with this index (from 0): linear warm-up, then half a cosine down to min_lr, then min_lr."""
    warmup, decay = recipe.warmup_epochs * steps_per_epoch, recipe.decay_epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.scheduler == "constant":
        return recipe.lr
    progress = min(1.0, (step - warmup) / decay)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def _parse(key: str, text: str) -> Any:
    """The text of a command line as a value of that key's type."""
    field = Recipe.model_fields[key]
    adapter: TypeAdapter[Any] = TypeAdapter(field.annotation or object)
    try:
        return adapter.validate_python(text, strict=False)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise SpecError(
            f"command line: --{key} {text!r} is no valid value: {problem[:1].lower() + problem[1:]}"
        ) from error


def _unknown(key: str, source: str) -> SpecError:
    near = difflib.get_close_matches(key, Recipe.model_fields, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return SpecError(f"{source}: key {key!r} is unknown", hint=f"{guess}valid keys: {', '.join(Recipe.model_fields)}")
