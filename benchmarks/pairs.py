"""Timing two things in turn, so that a machine whose speed drifts slows both."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Seconds of pairs (ours, peer), measured one after the other."""

    name: str
    peer: str
    pairs: tuple[tuple[float, float], ...]
    note: str = ""
    kept: bool | None = None  # the limit that we set ourselves; None: there is none

    def row(self) -> str:
        ours, peer = (statistics.median(values) for values in zip(*self.pairs, strict=True))
        ratios = sorted(mine / theirs for mine, theirs in self.pairs)
        extra = [mine - theirs for mine, theirs in self.pairs]
        verdict = {None: "", True: "kept: ", False: "**not kept**: "}[self.kept]
        return (
            f"| {self.name} | {self.peer} | {ours:.3f} s | {peer:.3f} s | "
            f"{statistics.median(extra):+.3f} s ({max(extra):+.3f}) | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {len(self.pairs)} | "
            f"{verdict}{self.note} |"
        )


@dataclass(frozen=True, slots=True)
class NotRun:
    """A line of the page that says why there are no figures."""

    name: str
    peer: str
    reason: str

    def row(self) -> str:
        return f"| {self.name} | {self.peer} | not run: {self.reason} | | | | | |"


HEADER = (
    "| ours | beside | ours, median | beside, median | difference, median (largest) | ratio, median (range) "
    "| pairs | |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def in_turn(ours: Callable[[], float], peer: Callable[[], float], *, pairs: int = 5) -> tuple[tuple[float, float], ...]:
    """Measure each once to warm up, then `pairs` times in turn."""
    ours(), peer()
    return tuple((ours(), peer()) for _ in range(pairs))
