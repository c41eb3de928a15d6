"""Where the state of one control plane lies, and which parts it brings along or finds elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jobs.errors import SpecError

ENV_HOME = "REX_HOME"


class Settings(BaseModel):
    """`config.yaml` in the state directory; every key is optional, and null means: bring it up on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ray_address: str | None = Field(default=None, description="host:port of an existing Ray cluster")
    mlflow_uri: str | None = Field(default=None, description="URI of an existing MLflow server")
    objects: str | None = Field(default=None, description="file:// or s3:// URI under which checkpoints lie")
    database: str | None = Field(default=None, description="SQLAlchemy URL of the job store")
    slots: int | None = Field(
        default=None, ge=1, description="CPUs that the local Ray offers; default: all, at least 2"
    )
    work_root: str | None = Field(default=None, description="folder for attempts on every node")
    lease_s: float = Field(
        default=60.0, ge=5, description="a node that did not reach the Ray head for so long ends its part of every job"
    )
    host_gone_command: list[str] | None = Field(
        default=None, min_length=1, description="exits 0 if {host} ({address}) is off for certain: the provider's word"
    )
    min_free_disk_gib: float = Field(
        default=1.0, ge=0, description="a node with less free disk for work_root is left out"
    )
    isolate: str = Field(default="auto", pattern="^(auto|never)$", description="PID namespace for each attempt")
    log_limit_mib: int = Field(default=192, ge=1, description="each log file of an attempt; beyond it the middle goes")
    keep_attempts: int = Field(default=5, ge=1, description="folders of a job's newest attempts that each node keeps")
    work_bound_gib: float = Field(default=20.0, gt=0, description="room for all ended attempts' folders on each node")

    @property
    def min_free_bytes(self) -> int:
        return int(self.min_free_disk_gib * (1 << 30))

    @field_validator("mlflow_uri")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        if uri is not None and "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError("must not hold a user or password; use MLflow's own environment variables by reference")
        return uri


class Home:
    """The state directory: one control plane, its store, logs, locks and local services."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.run = self.path / "run"  # locks and process records of the local stack
        self.logs = self.path / "logs"
        self.settings = self._read()

    @classmethod
    def find(cls, given: str | None = None) -> Home:
        """`--home`, else REX_HOME, else ~/.rexctl."""
        return cls(Path(given or os.environ.get(ENV_HOME) or "~/.rexctl"))

    def _read(self) -> Settings:
        path = self.path / "config.yaml"
        if not path.exists():
            return Settings()
        try:
            return Settings.model_validate(yaml.safe_load(path.read_text()) or {})
        except (ValidationError, yaml.YAMLError) as error:
            problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            key = ".".join(str(part) for part in problem["loc"])
            raise SpecError(
                f"{path}: {key or 'file'}: {problem['msg']}", hint=f"valid keys: {', '.join(Settings.model_fields)}"
            ) from error

    def create(self) -> None:
        for folder in (self.path, self.run, self.logs):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def database_url(self) -> str:
        return self.settings.database or f"sqlite:///{self.path / 'store.db'}"

    @property
    def objects_uri(self) -> str:
        return self.settings.objects or f"file://{self.path / 'objects'}"

    @property
    def work_root(self) -> str:
        return self.settings.work_root or str(self.path / "attempts")

    @property
    def slots(self) -> int:
        """At least two, so that a two-worker job can be tried anywhere; CPUs are then shared."""
        return self.settings.slots or max(2, os.cpu_count() or 1)

    @property
    def embedded_ray(self) -> bool:
        return self.settings.ray_address is None

    @property
    def embedded_mlflow(self) -> bool:
        return self.settings.mlflow_uri is None
