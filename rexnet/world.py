"""A rank's place in the world, found before MindSpore is imported: rank, CPUs, the wish to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

from jobs.contract import ENV_CPUS, ENV_LOCAL_RANKS
from jobs.errors import SpecError


class StopRequest:
    """Set by SIGTERM: the rank is to stop after the step on which all ranks agree."""

    def __init__(self) -> None:
        self.seen_at: float | None = None  # Unix time, for people
        self._heard_at = 0.0  # by the monotonic clock

    def __bool__(self) -> bool:
        return self.seen_at is not None

    def install(self) -> StopRequest:
        """Take SIGTERM from now on. To be repeated after imports that install handlers of their own."""
        signal.signal(signal.SIGTERM, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.seen_at is None:
            self.take(time.time(), time.monotonic())

    def take(self, seen_at: float, heard_at: float) -> None:
        """It came at that Unix time, which is that one by the monotonic clock."""
        self.seen_at, self._heard_at = seen_at, heard_at

    @property
    def waits_s(self) -> float:
        """Seconds since it came, whatever became of the wall clock; 0 if there is none."""
        return time.monotonic() - self._heard_at if self else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Who we are among the ranks; `cpus` are this rank's own, `is_scheduler` marks msrun's process that has no rank."""

    rank: int
    size: int
    cpus: tuple[int, ...]
    is_scheduler: bool = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def find_world(environment: Mapping[str, str], available: set[int], *, distribute: bool) -> World:
    """The world that msrun's environment describes; a world of one without msrun, or if not to be distributed.

    DEVICE_ID is the rank within the node; every node has the same number of ranks. On one node each takes an equal
    share of its CPUs: those of REX_CPUS, else all that this process may use.
    """
    named = environment.get(ENV_CPUS)
    try:
        cpus = [int(cpu) for cpu in named.split(",")] if named else sorted(available)
    except ValueError as error:
        raise SpecError(f"{ENV_CPUS}={named!r} is no list of CPU numbers", hint="say 0,1,2,3") from error
    if not distribute or "MS_WORKER_NUM" not in environment:
        return World(rank=0, size=1, cpus=tuple(cpus))
    size, rank = int(environment["MS_WORKER_NUM"]), int(environment.get("RANK_ID", "0"))
    if environment.get("MS_ROLE") == "MS_SCHED":
        return World(rank=-1, size=size, cpus=tuple(cpus), is_scheduler=True)
    local_size = int(environment.get(ENV_LOCAL_RANKS, size))
    return World(rank=rank, size=size, cpus=share_of(cpus, rank % local_size, local_size))


def share_of(cpus: list[int], local_rank: int, local_size: int) -> tuple[int, ...]:
    """The `local_rank`-th of equal shares; ranks beyond the number of CPUs share them in turn."""
    per_rank = len(cpus) // local_size
    if not per_rank:
        return (cpus[local_rank % len(cpus)],)
    return tuple(cpus[local_rank * per_rank : (local_rank + 1) * per_rank])


def pin(world: World) -> None:
    """Bind this process, and every thread it will start, to its CPUs: the number of threads decides the result's bits.

    Raises SpecError if the machine does not have them.
    """
    try:
        os.sched_setaffinity(0, world.cpus)
    except OSError as error:
        raise SpecError(f"CPUs {world.cpus} cannot be used here: {error.strerror}", hint=f"check {ENV_CPUS}") from error
