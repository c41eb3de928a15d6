"""From a training process's start to the end of its first step, compiled graphs at hand beside none.

The quickstart in one process on all CPUs, with our kernels and with MindSpore's built-in operators (whose graph is the
one that Ascend compiles); seconds are those of the rank's own report. All include the interpreter's start and
MindSpore's import, which no cache shortens: they are told beside.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pairs import Result, in_turn
from rexnet import kernels
from rexnet.data.digits import write_digits


def run() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="rexnet-start-") as name:
        folder = Path(name)
        write_digits(folder / "digits")
        return [_warm_beside_cold(folder, operators) for operators in ("", kernels.BUILTIN)]


def _warm_beside_cold(folder: Path, operators: str) -> Result:
    kept = folder / f"kept-{operators}"
    train(folder, kept, operators)  # fills the cache that the warm ones find
    pairs = in_turn(lambda: train(folder, kept, operators), lambda: train(folder, None, operators))
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    note = f"warm {ratio:.1f} times sooner; importing MindSpore alone takes {statistics.median(imports()):.1f} s"
    name = f"start to first step, warm, {'built-in operators' if operators else 'our kernels'}"
    return Result(name=name, peer="cold compile cache", pairs=pairs, note=note)


def imports() -> list[float]:
    """Seconds that a process takes which does nothing but import MindSpore."""
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import mindspore"], check=True, capture_output=True)
        seconds.append(time.monotonic() - began)
    return seconds


def train(folder: Path, cache: Path | None, operators: str) -> float:
    """Seconds from the start of one process to its first step's end; without `cache` it compiles."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        own = cache or Path(work, "cache")
        env = {**os.environ, "REX_REPORT_DIR": work, "REX_COMPILE_CACHE": str(own), "MLFLOW_TRACKING_URI": ""}
        if operators:
            env[kernels.ENV_KERNELS] = operators
        command = [sys.executable, "-m", "rexnet.train", "--config=quickstart", f"--data_dir={folder / 'digits'}",
                   "--distribute=False", "--max_steps=1"]  # fmt: skip
        root = str(Path(__file__).resolve().parents[1])
        began = time.time()
        subprocess.run(command, env={**env, "PYTHONPATH": root}, cwd=work, check=True, capture_output=True)
        beat = json.loads(Path(work, "rank_0.json").read_text())["heartbeat"]
        return float(beat["first_step_at"]) - began
