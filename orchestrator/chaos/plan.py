"""Which faults are tried, when and on what: a pure function of the plan and its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.budgets import Cause
from jobs.errors import SpecError
from jobs.spec import Credentials

Expectation = Literal["untouched", "goes_on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of fault. `needs` names the commands of the plan without which it cannot be done here."""

    name: str
    expects: Expectation  # untouched: one attempt, as if nothing had been; goes_on: at least one more attempt
    where: Literal["node", "control", "host", "service"]
    needs: tuple[str, ...] = ()
    patient: bool = False  # nobody may act on it before a lease, or a patience of that order, is over
    causes: tuple[Cause, ...] = ()  # how the attempt that it hits may end, where it ends
    early: bool = False  # may also come while the gang starts: what it hits is there by then


_VICTIMS = ("worker", "msrun", "scheduler", "supervisor", "agent")
_UNNOTICED = ("msrun", "scheduler")  # nobody needs them while the workers train
_BY_KILL = {"worker": Cause.CRASH}  # the others are infrastructure
_BY_STOP = {"worker": Cause.HANG, "supervisor": Cause.INFRASTRUCTURE, "agent": Cause.NODE_LOST}
KINDS = {
    kind.name: kind
    for kind in [
        *(
            Kind(
                name=f"kill_{victim}",
                expects="goes_on",
                where="node",
                causes=(_BY_KILL.get(victim, Cause.INFRASTRUCTURE),),
            )
            for victim in _VICTIMS
        ),
        *(
            Kind(name=f"stop_{victim}", expects="untouched", where="node")
            if victim in _UNNOTICED
            else Kind(name=f"stop_{victim}", expects="goes_on", where="node", patient=True, causes=(_BY_STOP[victim],))
            for victim in _VICTIMS
        ),
        Kind(
            name="kill_ray_node",
            expects="goes_on",
            where="node",
            needs=("start_ray_node",),
            causes=(Cause.NODE_LOST, Cause.INFRASTRUCTURE),  # the second where the node is back to certify its end
            early=True,
        ),
        Kind(name="stop_ray_node", expects="untouched", where="node"),
        Kind(name="kill_driver", expects="untouched", where="control", early=True),
        # Away for longer than a lease: whoever renewed through it would be found out. The driver has a keeper.
        Kind(name="kill_control_plane", expects="untouched", where="control", patient=True, early=True),
        Kind(name="stop_driver", expects="untouched", where="control", patient=True, early=True),
        Kind(name="stop_control_plane", expects="untouched", where="control", patient=True, early=True),
        Kind(name="fill_disk", expects="untouched", where="node", needs=("allow_full_disk",)),
        Kind(name="blink_network", expects="untouched", where="host", needs=("cut", "heal"), early=True),
        Kind(
            name="cut_network",
            expects="goes_on",
            where="host",
            needs=("cut", "heal"),
            patient=True,
            causes=(Cause.NODE_LOST,),
            early=True,
        ),
        Kind(name="slow_network", expects="untouched", where="host", needs=("slow", "heal"), early=True),
        Kind(
            name="power_off",
            expects="goes_on",
            where="host",
            needs=("power_off", "power_on"),
            patient=True,
            causes=(Cause.NODE_LOST,),
            early=True,
        ),
        *(
            Kind(
                name=f"stop_{name}",
                expects="untouched",
                where="service",
                needs=(f"stop_{name}", f"start_{name}"),
                early=True,
            )
            for name in ("mlflow", "store")
        ),
    ]
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Canary(_Section):
    """The job that the faults hit: our canary, or a job file of yours (`job`)."""

    nodes: int = Field(default=1, ge=1)
    workers_per_node: int = Field(default=1, ge=1)
    steps: int = Field(default=200, ge=10, description="more, where a lease has to run out while it trains")
    step_s: float = Field(default=0.1, gt=0)
    commit_every: int = Field(default=20, ge=1)
    credentials: Credentials = Credentials()
    job: str | None = Field(default=None, description="path of a job file, relative to the plan")


class Plan(_Section):
    """A chaos plan. `commands` do from here what cannot be done on a host: {host} and {address} are filled in."""

    seed: int = 0
    count: int | None = Field(default=None, ge=1, description="number of faults; default: each kind once")
    kinds: tuple[str, ...] | None = Field(default=None, description="default: all that can be done with these commands")
    canary: Canary = Canary()
    pause_s: float = Field(default=8.0, gt=0, description="for how long what is stopped stays so")
    early_share: float = Field(
        default=0.25, ge=0.0, le=1.0, description="of the faults that may come while a gang starts: those that do"
    )
    spare: tuple[str, ...] = Field(default=(), description="hosts that no host fault may hit (the Ray head's)")
    commands: dict[str, tuple[str, ...]] = {}
    allow_full_disk: bool = False

    def what_counts(self) -> dict[str, Any]:
        """What makes a campaign another one; how its commands do what they do does not."""
        return self.model_dump(mode="json", exclude={"commands"})

    def possible(self) -> dict[str, str]:
        """Each kind, and what it lacks here ("" if nothing)."""
        have = {*self.commands, *(["allow_full_disk"] if self.allow_full_disk else [])}
        return {
            name: ", ".join(f"{need} is missing" for need in kind.needs if need not in have)
            for name, kind in KINDS.items()
        }


_LATEST_OF_PATIENT = 0.3  # of the steps: the rest of the job has to outlast the patience
_STARTING_S = 5.0  # from the grant of a gang to its first step, or not much more


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: when the job has got to `at` of its steps, or `early_s` seconds after it was granted its gang if that
    is given; on the node or host that `pick` in [0, 1) chooses."""

    seed: int  # of the plan that it comes from, where it has this number
    number: int
    kind: str
    at: float
    pick: float
    early_s: float | None = None

    @property
    def moment(self) -> str:
        if self.early_s is not None:
            return f"{self.early_s:.1f} s after the grant of its gang"
        return f"at {self.at:.0%} of the steps"


def read_plan(path: Path | None, *, seed: int | None = None) -> Plan:
    """The plan of a file, or the default one; SpecError with the key and what is valid."""
    values: dict[str, Any] = {}
    try:
        if path is not None:
            values = yaml.safe_load(path.read_text()) or {}
        if seed is not None:
            values["seed"] = seed
        plan = Plan.model_validate(_tuples(values))
    except (OSError, yaml.YAMLError) as error:
        raise SpecError(f"chaos plan {path}: {' '.join(str(error).split())}") from error
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        key = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"chaos plan {path}: {key}: {first['msg']}", hint=f"keys: {', '.join(Plan.model_fields)}"
        ) from error
    for name in plan.kinds or ():
        if name not in KINDS:
            raise SpecError(f"chaos plan {path}: kinds: {name} is none", hint=f"valid: {', '.join(KINDS)}")
        if lacks := plan.possible()[name]:
            raise SpecError(f"chaos plan {path}: kinds: {name} cannot be done: {lacks}", hint="see `commands`")
    return plan


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def faults(plan: Plan) -> list[Fault]:
    """The plan's faults in their order. Every kind comes once before any comes twice; of those that may come
    while a gang starts `early_share` do so, but none before its kind has come to a job that trains (unless all do)."""
    kinds = plan.kinds or tuple(name for name, lacks in plan.possible().items() if not lacks)
    draw = random.Random(plan.seed)
    order: list[str] = []
    while len(order) < (plan.count or len(kinds)):
        order += draw.sample(kinds, len(kinds))
    chosen = order[: plan.count or len(kinds)]
    found, seen = [], set[str]()
    for number, kind in enumerate(chosen, 1):
        at = draw.uniform(0.15, _LATEST_OF_PATIENT if KINDS[kind].patient else 0.7)
        pick, chance, early_s = draw.random(), draw.random(), draw.uniform(0.0, _STARTING_S)
        early = KINDS[kind].early and (kind in seen or plan.early_share == 1.0) and chance < plan.early_share
        found.append(
            Fault(seed=plan.seed, number=number, kind=kind, at=at, pick=pick, early_s=early_s if early else None)
        )
        seen.add(kind)
    return found
