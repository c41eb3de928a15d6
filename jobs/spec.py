"""The job file: what a user may ask for, validated once, then never changed."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.budgets import Retry
from jobs.errors import SpecError

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_?KEY|PRIVATE_KEY", re.IGNORECASE)
_MSRUN_SETS = (
    *("MS_ROLE", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_NODE_ID", "MS_TOPO_TIMEOUT"),
    *("RANK_ID", "RANK_SIZE", "DEVICE_ID", "ASCEND_RT_VISIBLE_DEVICES"),
)
_ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Gang(_Section):
    """The nodes a job needs all at once, and what runs on each."""

    nodes: int = Field(default=1, ge=1, le=4096)
    workers_per_node: int = Field(default=1, ge=1, le=64)
    device: Literal["cpu", "npu"] = "cpu"
    cpus_per_worker: int = Field(default=1, ge=1, le=512)
    interface: str | None = Field(
        default=None, pattern=r"^[^\s/]{1,15}$|^[0-9A-Fa-f.:]+/\d{1,3}$", description="over which the nodes meet"
    )
    bind: Literal["none", "cores", "numa"] = Field(default="none", description="what msrun binds each worker to")

    @property
    def world_size(self) -> int:
        return self.nodes * self.workers_per_node

    @property
    def cpus_per_node(self) -> int:
        return self.workers_per_node * self.cpus_per_worker

    @property
    def npus_per_node(self) -> int:
        return self.workers_per_node if self.device == "npu" else 0


class Program(_Section):
    """What msrun starts: a module of an installed package, or a script by its absolute path."""

    module: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*$")
    script: str | None = Field(default=None, pattern=r"^/")
    args: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Program:
        if (self.module is None) == (self.script is None):
            raise ValueError("needs exactly one of: module, script")
        return self


class Data(_Section):
    """The training data: a folder that every node sees, or a data set that we bring along."""

    dir: str | None = Field(default=None, pattern=r"^/")
    builtin: Literal["digits"] | None = None

    @model_validator(mode="after")
    def _at_most_one(self) -> Data:
        if self.dir is not None and self.builtin is not None:
            raise ValueError("takes one of: dir, builtin")
        return self


class InitFrom(_Section):
    """Start from another job's weights: its newest checkpoint, or the one of a step."""

    job: str = Field(min_length=1)
    step: int | None = Field(default=None, ge=0)


class Limits(_Section):
    wall_time_s: float | None = Field(default=None, gt=0, description="total running time over all attempts")
    drain_grace_s: float = Field(default=60.0, gt=0, description="from SIGTERM to SIGKILL")
    hang_s: float | None = Field(
        default=None,
        ge=1,
        description="seconds without a step after which a training rank hangs; null: ten times its longest one",
    )
    start_timeout_s: float = Field(default=600.0, gt=0, description="from launch to the workers' first heartbeat")


def _no_dunder(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not re.match(_ENV_NAME, name):
            raise ValueError("holds something that is no environment name; give names, never values")
    return names


class Credentials(_Section):
    """Credentials by reference: values stay in the nodes' own environment and files."""

    aws_profile: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    from_env: Annotated[tuple[str, ...], AfterValidator(_no_dunder)] = ()


class JobSpec(_Section):
    """A whole job file. Frozen: a changed job is a new job."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
    priority: int = Field(default=0, ge=-1000, le=1000)
    gang: Gang = Gang()
    program: Program
    data: Data = Data()
    init_from: InitFrom | None = None
    retry: Retry = Retry()
    limits: Limits = Limits()
    env: dict[str, str] = {}
    credentials: Credentials = Credentials()

    @model_validator(mode="after")
    def _env_is_harmless(self) -> JobSpec:
        for name in self.env:
            if not re.match(_ENV_NAME, name):
                raise ValueError(f"env: {name!r} is no environment name")
            if name.startswith("REX_"):
                raise ValueError(f"env: {name} belongs to the control plane")
            if name in _MSRUN_SETS:
                raise ValueError(f"env: {name} is set by msrun or by Ray, for each worker")
            if _SECRET_NAME.search(name):
                raise ValueError(f"env: {name} looks like a secret; name it in credentials.from_env instead")
        return self


def parse_spec(text: str, source: str = "job file") -> JobSpec:
    """Read a job file's YAML text; SpecError with the key, what was seen and what is valid."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SpecError(f"{source} holds {type(values).__name__}, not keys", hint=f"valid keys: {_keys(JobSpec)}")
    return build_spec(values, source)


def build_spec(values: dict[str, Any], source: str = "job file") -> JobSpec:
    """Validate a job given as plain values; SpecError as `parse_spec`."""
    try:
        return JobSpec.model_validate(_lists_to_tuples(values))
    except ValidationError as error:
        raise _explain(error, source) from error


def _lists_to_tuples(value: Any) -> Any:
    """YAML has lists only; strict tuples want tuples."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value


def _keys(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)


def _section_at(path: tuple[int | str, ...]) -> type[BaseModel]:
    """The model class that holds the key at `path`."""
    section: type[BaseModel] = JobSpec
    for part in path[:-1]:
        field = section.model_fields.get(str(part))
        candidates = [field.annotation, *get_args(field.annotation)] if field is not None else []
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            break
        section = models[0]
    return section


def _explain(error: ValidationError, source: str) -> SpecError:
    """One sentence from pydantic's first finding: unknown keys first, they explain the others."""
    findings = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    first, more = findings[0], len(findings) - 1
    path = tuple(first["loc"])
    key = ".".join(str(part) for part in path)
    rest = f"; {more} more problem{'s' if more > 1 else ''} after that" if more else ""
    if first["type"] == "extra_forbidden":
        section = _section_at(path)
        near = difflib.get_close_matches(str(path[-1]), section.model_fields, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        return SpecError(f"{source}: unknown key {key}{rest}", hint=f"{meant}valid keys: {_keys(section)}")
    if first["type"] == "missing":
        return SpecError(f"{source}: key {key} is missing{rest}", hint=f"valid keys: {_keys(_section_at(path))}")
    message = first["msg"].removeprefix("Value error, ")
    seen = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    where = f"{key}: " if key else ""
    return SpecError(f"{source}: {where}{message[0].lower()}{message[1:]}{seen}{rest}")
