"""From a training process's start to the end of its first step, compiled graphs at hand beside none.

The quickstart in one process on all CPUs; seconds are those of the rank's own report. Both include the interpreter's
start and MindSpore's import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pairs import Result, in_turn
from rexnet.data.digits import write_digits


def run() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="rexnet-start-") as name:
        folder = Path(name)
        write_digits(folder / "digits")
        train(folder, folder / "kept")  # fills the cache that the warm ones find
        pairs = in_turn(lambda: train(folder, folder / "kept"), lambda: train(folder, None))
    times = [theirs / ours for ours, theirs in pairs]
    note = f"cold takes {min(times):.1f} to {max(times):.1f} times as long"
    return [Result(name="start to first step, warm", peer="cold compile cache", pairs=pairs, note=note)]


def train(folder: Path, cache: Path | None) -> float:
    """Seconds from the start of one process to its first step's end; without `cache` it compiles."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        own = cache or Path(work, "cache")
        env = {**os.environ, "REX_REPORT_DIR": work, "REX_COMPILE_CACHE": str(own), "MLFLOW_TRACKING_URI": ""}
        command = [sys.executable, "-m", "rexnet.train", "--config=quickstart", f"--data_dir={folder / 'digits'}",
                   "--distribute=False", "--max_steps=1"]  # fmt: skip
        root = str(Path(__file__).resolve().parents[1])
        began = time.time()
        subprocess.run(command, env={**env, "PYTHONPATH": root}, cwd=work, check=True, capture_output=True)
        beat = json.loads(Path(work, "rank_0.json").read_text())["heartbeat"]
        return float(beat["first_step_at"]) - began
