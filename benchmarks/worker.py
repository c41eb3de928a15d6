"""A process of its own for each thing that is timed: it does steps when told to, and says how long one took.

Over pipes: the worker prints a JSON line with the seconds to its first step; then for every line "NUM" on its stdin it
does NUM steps and prints {"seconds": mean of one}. Between, it sleeps: only one worker computes at a time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def serve(step: Callable[[], object], began: float) -> None:
    """The worker's side. `began` (perf_counter) is when the model's making began."""
    step()
    print(json.dumps({"first_step": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        at, num_steps = time.perf_counter(), int(line)
        for _ in range(num_steps):
            step()
        print(json.dumps({"seconds": (time.perf_counter() - at) / num_steps}), flush=True)


class Worker:
    """The other side: `Worker(command)` runs it; a context manager that ends it."""

    def __init__(self, command: Sequence[str], *, num_steps: int) -> None:
        self._num_steps = num_steps
        self._command = " ".join(command)
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=Path(__file__).resolve().parents[1],
        )  # fmt: skip
        self.first_step = self._answer("first_step")

    def measure(self) -> float:
        """Seconds of one step, the mean of `num_steps`."""
        assert self._process.stdin is not None
        print(self._num_steps, file=self._process.stdin, flush=True)
        return self._answer("seconds")

    def _answer(self, key: str) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # MindSpore logs to stdout as well
                return float(json.loads(line)[key])
        raise RuntimeError(f"{self._command} ended with {self._process.wait()}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
