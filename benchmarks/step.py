"""A training step of ReXNet 0.9 (forward, backward, SGD) beside MindSpore's built-in operators and beside PyTorch.

Each in a process of its own, in turn, on all CPUs that this one may use; float32. PyTorch is measured where it can be
imported by this interpreter, or by the one that REX_BENCH_TORCH_PYTHON names.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from benchmarks.pairs import Result, in_turn
from benchmarks.worker import Worker

SHAPES = ((16, 224), (32, 64))  # images, pixels
PEERS = (
    # name, module, argument, steps in one measurement
    ("MindSpore's built-in operators, as MindCV uses them", "step_mindspore", "builtin", 1),
    ("PyTorch, contiguous", "step_torch", "contiguous", 3),
    ("PyTorch, channels-last", "step_torch", "channels_last", 3),
)
OUR_STEPS = 3


def torch_python() -> str | None:
    """An interpreter that has PyTorch, or None."""
    python = os.environ.get("REX_BENCH_TORCH_PYTHON", sys.executable)
    done = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    return python if done.returncode == 0 else None


def run() -> list[Result]:
    torch = torch_python()
    if torch is None:
        print("no PyTorch here: not compared (REX_BENCH_TORCH_PYTHON names an interpreter that has it)", flush=True)
    found = []
    for batch, size in SHAPES:
        shape = (str(batch), str(size))
        ours_command = [sys.executable, "-m", "benchmarks.step_mindspore", "ours", *shape]
        with Worker(ours_command, num_steps=OUR_STEPS) as ours:
            for name, module, argument, num_steps in PEERS:
                python = torch if module == "step_torch" else sys.executable
                if python is None:
                    continue
                with Worker([python, "-m", f"benchmarks.{module}", argument, *shape], num_steps=num_steps) as peer:
                    pairs = in_turn(ours.measure, peer.measure)
                    rates = [batch / statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
                    note = f"{rates[0]:.1f} and {rates[1]:.1f} images/s, {rates[0] / rates[1]:.1f} times as many"
                    if module == "step_mindspore":
                        note += f"; first step after {ours.first_step:.0f} and {peer.first_step:.0f} s"
                    found.append(Result(name=f"step, {batch} x {size} px", peer=name, pairs=pairs, note=note))
    return found
