"""Which checkpoints keep their state: a policy that decides and never deletes.

What is not kept is retired: its large files go, its manifest and its part of the run's record stay. So the chain, the
metrics and the certificates remain whole for ever, at a few kilobytes a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.manifest import Manifest


class Retention(BaseModel):
    """Keep the newest `last` checkpoints, every one at a multiple of `every_steps`, and the `best` by `metric`.

    A checkpoint of which the metric is missing or no number is never among the best. `last` None keeps everything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    last: int | None = Field(default=None, ge=1)
    every_steps: int | None = Field(default=None, ge=1)
    best: int = Field(default=0, ge=0)
    metric: str = "top1"
    mode: Literal["max", "min"] = "max"

    def keeps(self, live: Sequence[Manifest]) -> dict[str, str]:
        """Names of those to keep, with the reason. `live` are the live manifests, newest first."""
        if self.last is None:
            return {manifest.name: "all are kept" for manifest in live}
        kept: dict[str, str] = {}
        scored = [m for m in live if math.isfinite(m.metrics.get(self.metric, math.nan))]
        sign = -1 if self.mode == "max" else 1
        for rank, manifest in enumerate(sorted(scored, key=lambda m: (sign * m.metrics[self.metric], m.step))):
            if rank < self.best:
                kept[manifest.name] = f"{self.metric} {manifest.metrics[self.metric]:g}, number {rank + 1}"
        for manifest in live:
            if self.every_steps is not None and manifest.step % self.every_steps == 0:
                kept[manifest.name] = f"a multiple of {self.every_steps} steps"
        for number, manifest in enumerate(live[: self.last]):
            kept[manifest.name] = f"number {number + 1} of the newest {self.last}"
        return kept
