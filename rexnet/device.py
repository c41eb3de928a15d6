"""The device and the ranks around it: starting both, and small sums over ranks."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from jobs.errors import SpecError
from rexnet.recipe import Recipe
from rexnet.step import SumOverRanks
from rexnet.world import World


def start_device(world: World) -> str:
    """Graph mode on CPU, or on Ascend where there is one; joins the other ranks. Returns "CPU" or "Ascend"."""
    ms.set_context(mode=ms.GRAPH_MODE)
    if world.size > 1:
        from mindspore.communication import init

        with _one_thread_at_a_time(world) if ms.get_context("device_target") == "CPU" else nullcontext():
            init()
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.STAND_ALONE)  # the step reduces by itself
    return str(ms.get_context("device_target"))


@contextmanager
def _one_thread_at_a_time(world: World) -> Iterator[None]:
    """Keep this thread, and those that it starts meanwhile, on one CPU, where none interrupts another that runs.

    Otherwise tries of MindSpore's `init` to reach msrun's scheduler fail although it listens, and the next one comes
    half a second later (docs/decisions/0011-joining-on-one-cpu.md). Who has chosen another policy keeps it.
    """
    if os.sched_getscheduler(0) != os.SCHED_OTHER:  # back to which may need a privilege
        yield
        return
    cpus, before = os.sched_getaffinity(0), set(_threads()) - {threading.get_native_id()}
    try:
        os.sched_setaffinity(0, {sorted(cpus)[world.rank % len(cpus)]})
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        yield
    finally:
        for thread in set(_threads()) - before:
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
                os.sched_setaffinity(thread, cpus)


def _threads() -> list[int]:
    return [int(entry.name) for entry in Path("/proc/self/task").iterdir()]


def mix_precision(network: ms.nn.Cell, recipe: Recipe, device: str) -> str:
    """Cast the network as `amp_level` says, on Ascend; returns what is to be said about it, "" for nothing.

    MindSpore's CPU convolutions know float32 only. Not run on hardware by us.
    """
    if recipe.amp_level == "O0":
        return ""
    if device != "Ascend":
        return f"amp_level {recipe.amp_level} is for Ascend: {device} computes in float32"
    ms.amp.auto_mixed_precision(network, amp_level=recipe.amp_level)
    return ""


class Ranks:
    """What all ranks do together, besides the training step."""

    def __init__(self, world: World) -> None:
        self._size = world.size
        self._cell = SumOverRanks() if world.size > 1 else None

    def sum(self, value: int) -> int:
        """Sum over ranks of a number below 2**24 (the CPU reduces floats only); all get here before any gets on."""
        if self._cell is None:
            return value
        return int(self._cell(Tensor([value], ms.float32)).asnumpy()[0])

    def same(self, value: str) -> bool:
        """Is `value` the same on all ranks, as far as 36 bits of its hash tell? The answer is the same on all, too."""
        digest = hashlib.sha256(value.encode()).hexdigest()
        parts = [int(digest[i : i + 3], 16) for i in (0, 3, 6)]  # 12 bits each: exact for 4,096 ranks
        alone = sum(self.sum(part) != part * self._size for part in parts)
        return self.sum(alone) == 0

    def first_common(self, names: Sequence[str], mine: Collection[str]) -> str | None:
        """The first of `names`, which are the same on all ranks, that is among `mine` on each; None if none is."""
        return next((name for name in names if self.sum(name in mine) == self._size), None)

    def agree(self, what: str, value: str) -> None:
        """SpecError unless `value` is the same on all ranks."""
        if not self.same(value):
            raise SpecError(f"{what} is not the same on all ranks: here it is {value[:16]!r}",
                            hint="run the same code, built alike, on every node")  # fmt: skip
