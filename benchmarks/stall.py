"""What a checkpoint costs training: the time a step waits for it, and how much the commit beside the steps slows them.

ReXNet 0.9 with SGD's momentum and EMA on a directory store, in one process; beside it MindSpore's own
`save_checkpoint` of the same arrays under the same names, one for each weight, momentum and average, as optimisers of
MindSpore hold them; it hashes nothing and does not wait for the disk.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pairs import Result

BATCH, SIZE = 32, 64  # images, pixels: a step short enough for a stall to show
EVERY_S = 30.0
PAIRS, BLOCKS = 9, 15


def run() -> list[Result]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.stall"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        check=True, cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    seen = json.loads(done.stdout.splitlines()[-1])
    step_s = statistics.median(seen["alone"]) / seen["num_steps"]
    blocked_s = statistics.median(seen["ours"])
    cost_s = statistics.median(a - b for a, b in zip(seen["beside"], seen["alone"], strict=True))
    cpu_s = statistics.median(a - b for a, b in zip(seen["beside_cpu"], seen["alone_cpu"], strict=True))
    name = f"step blocked by a checkpoint of {seen['num_bytes'] / 1e6:.0f} MB"
    note = f"{1e3 * blocked_s:.1f} ms, {100 * blocked_s / step_s:.1f}% of a step of {BATCH} x {SIZE} px"
    peers = (("MindSpore's save_checkpoint", "sync"), ("the same with async_save", "async"))
    return [
        *(
            Result(
                name=name,
                peer=peer,
                pairs=_pairs(seen, "ours", key),
                note=f"{note}; the ratio of CPU times is {_median_ratio(seen, 'ours_cpu', f'{key}_cpu'):.2f}",
            )
            for peer, key in peers
        ),
        Result(
            name=f"{seen['num_steps']} steps with a checkpoint",
            peer="without",
            pairs=_pairs(seen, "beside", "alone"),
            note=f"a checkpoint costs {1e3 * cost_s:.0f} ms of training ({1e3 * cpu_s:.0f} ms of a CPU), one every "
            f"{EVERY_S:.0f} s {100 * cost_s / EVERY_S:.2f}%; a commit takes {seen['commit']:.2f} s",
        ),
    ]


def _median_ratio(seen: dict[str, Any], ours: str, peer: str) -> float:
    return statistics.median(mine / theirs for mine, theirs in _pairs(seen, ours, peer))


def _pairs(seen: dict[str, Any], ours: str, peer: str) -> tuple[tuple[float, float], ...]:
    return tuple(zip(seen[ours], seen[peer], strict=True))


class Training:
    """Steps of our own program, its state, and the writer that commits it to `./store`."""

    def __init__(self) -> None:
        import mindspore as ms
        import numpy as np
        from mindspore import Tensor

        from cluster.storage.chain.checkpoints import CheckpointStore
        from cluster.storage.directory import DirectoryStore
        from rexnet.checkpoint import CheckpointWriter
        from rexnet.model import create_model
        from rexnet.recipe import make_recipe
        from rexnet.snapshot import Source, State
        from rexnet.step import TrainStep

        ms.set_context(mode=ms.GRAPH_MODE)
        recipe = make_recipe({"model": "rexnet_09", "opt": "momentum", "ema": True, "batch_size": BATCH}, "benchmark")
        network = create_model(recipe.model, num_classes=recipe.num_classes, image_size=SIZE, seed=0)
        self._train = TrainStep(network, recipe, 1)
        self._train.start_average()
        random = np.random.default_rng(0)
        labels, none = Tensor(random.integers(0, 1000, BATCH).astype(np.int32)), Tensor(np.zeros((1, 1), np.float32))
        images = Tensor(random.standard_normal((BATCH, 3, SIZE, SIZE), dtype=np.float32))
        self._inputs = (images, labels, labels, none, none)
        self._control = Tensor(np.array([0.01, 0, 1, 0.999], np.float32))
        self._num_saved = 0
        self.sources = [Source.whole(parameter) for parameter in network.get_parameters()] + self._train.sources()
        chain = CheckpointStore(DirectoryStore("store"), "job")
        chain.start_attempt(1)
        constants = {"config_sha256": recipe.digest(), "world_size": 1, "seed": 0, "code": {}, "versions": {}}
        self.writer = CheckpointWriter(
            chain, State(self.sources), attempt=1, start=None, constants=constants, on_commit=lambda *_: None
        )

    def step(self) -> None:
        self._train([self._inputs], self._control)[0].asnumpy()

    def save(self) -> None:
        from rexnet.checkpoint import Progress

        self._num_saved += 1
        self.writer.save(
            Progress(step=self._num_saved, epoch=0, samples=0, points=[], entries=[], certificate="", metrics={})
        )

    def idle(self) -> None:
        while self.writer.busy:
            time.sleep(0.01)
        self.writer.check()


def measure() -> dict[str, Any]:
    """The worker: seconds by what was done."""
    import mindspore as ms

    from rexnet.checkpoint import read_arrays
    from rexnet.snapshot import Image, State

    ours = Training()
    image = Image(State(ours.sources))
    image.copy()
    arrays = read_arrays(bytes(image.body), "image")
    theirs = [{"name": name, "data": ms.Parameter(ms.Tensor(array), name=name)} for name, array in arrays.items()]

    def asynchronous_idle() -> None:
        while ms.async_ckpt_thread_status():
            time.sleep(0.01)

    ours.step()
    names = ("ours", "sync", "async", "beside", "alone")
    seen: dict[str, Any] = {key: [] for name in names for key in (name, f"{name}_cpu")}
    for _ in range(PAIRS + 1):  # the first one warms up
        for key, save, wait in (
            ("ours", ours.save, ours.idle),
            ("sync", lambda: ms.save_checkpoint(theirs, "sync.ckpt"), lambda: None),
            ("async", lambda: ms.save_checkpoint(theirs, "async.ckpt", async_save=True), asynchronous_idle),
        ):
            ours.step()
            seconds, cpu = _seconds(save, time.thread_time)
            seen[key].append(seconds)
            seen[f"{key}_cpu"].append(cpu)
            wait()
    for values in seen.values():
        del values[:1]
    seen["commit"] = ours.writer.commit_s
    step_s = statistics.median(_seconds(ours.step, time.process_time)[0] for _ in range(5))
    seen["num_steps"] = num_steps = 2 + math.ceil(ours.writer.commit_s / step_s)
    for number in range(2 * BLOCKS):
        key = "beside" if number % 2 else "alone"

        def block(key: str = key) -> None:
            if key == "beside":
                ours.save()
            for _ in range(num_steps):
                ours.step()

        seconds, cpu = _seconds(block, time.process_time)
        seen[key].append(seconds)
        seen[f"{key}_cpu"].append(cpu)
        ours.idle()
    seen["num_bytes"] = sum(source.read().nbytes for source in ours.sources)
    return seen


def _seconds(what: Callable[[], object], cpu_time: Callable[[], float]) -> tuple[float, float]:
    """On the wall's clock and on `cpu_time`: that of this thread or of the process."""
    began, cpu = time.perf_counter(), cpu_time()
    what()
    return time.perf_counter() - began, cpu_time() - cpu


if __name__ == "__main__":
    import os

    with tempfile.TemporaryDirectory(prefix="rex") as folder:
        os.chdir(folder)
        print(json.dumps(measure()))
