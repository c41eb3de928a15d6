"""A run for the checkpoint writer: real parameters, a real chain in a directory that can be hung or taken away."""

from __future__ import annotations

import hashlib
import threading
import time
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.digests import FileDigests
from cluster.storage.directory import DirectoryStore
from jobs import certificate
from jobs.errors import StoreUnavailable
from jobs.files import METRICS, STATE
from jobs.manifest import Manifest
from jobs.retention import Retention
from rexnet.checkpoint import Arrays, CheckpointWriter, Progress, read_arrays
from rexnet.journal import Journal, Point, from_lines
from rexnet.snapshot import Source, State
from rexnet.trail import Trail

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    import mindspore as ms
    from mindspore import Tensor

CONSTANTS: dict[str, Any] = {"config_sha256": "0" * 64, "world_size": 1, "seed": 1, "code": {}, "versions": {}}


class WeakStore(DirectoryStore):
    """A directory whose uploads, or downloads, wait while they are held; nothing works in it while it is `dead`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.dead = False
        self.upload_began = threading.Semaphore(0)
        self.download_began = threading.Semaphore(0)
        self._open, self._readable = threading.Event(), threading.Event()
        self.release()

    def hold(self) -> None:
        self._open.clear()

    def hold_downloads(self) -> None:
        self._readable.clear()

    def release(self) -> None:
        self._open.set()
        self._readable.set()

    def put_file(self, key: str, path: Path, digests: FileDigests | None = None) -> None:
        self._ask()
        self.upload_began.release()
        self._open.wait()
        self._ask()
        super().put_file(key, path, digests)

    def get_file(self, key: str, path: Path) -> str:
        self.download_began.release()
        self._readable.wait()
        return super().get_file(key, path)

    def create(self, key: str, body: bytes) -> None:
        self._ask()
        super().create(key, body)

    def list(self, prefix: str) -> Any:
        self._ask()
        return super().list(prefix)

    def _ask(self) -> None:
        if self.dead:
            raise StoreUnavailable(f"{self.uri} does not answer")


class Run:
    """A real chain and writer; two parameters, a vector over them and a counter, all changed in place by each step."""

    def __init__(self, folder: Path, *, attempt: int = 1, size: int = 1000, retention: Retention | None = None) -> None:
        self.store = WeakStore(folder / "store")
        self.chain = CheckpointStore(self.store, "job")
        self.start = self.chain.start_attempt(attempt)
        weights = [make_parameter("conv.weight", np.zeros((size, 3), np.float32)),
                   make_parameter("cls.bias", np.zeros((7,), np.float32))]  # fmt: skip
        self.parameters = [*weights, make_parameter("momentum", np.zeros((3 * size + 7,), np.float32)),
                           make_parameter("updates", np.zeros((), np.int64))]  # fmt: skip
        sources = [Source.whole(p) for p in (*weights, self.parameters[3])]
        sources.append(Source.vector(self.parameters[2], weights, "momentum."))
        self.journal, self.trail = Journal(folder / f"journal-{attempt}.jsonl"), Trail()
        self.manifests: list[Manifest] = []
        self.at_step: dict[int, str] = {}  # digests of the state
        self.step = 0
        self.random = np.random.default_rng(attempt)
        self.committed = threading.Semaphore(0)
        self.breaks = False  # what is told of commits
        self.writer = CheckpointWriter(
            self.chain, State(sources), attempt=attempt, start=self.start.manifest, constants=CONSTANTS,
            on_commit=self._committed, retention=retention,
        )  # fmt: skip

    def train(self, num_steps: int = 1) -> None:
        for _ in range(num_steps):
            self.step += 1
            for parameter in self.parameters:
                live = parameter.asnumpy()
                live[...] = (self.random.standard_normal(live.shape) * 9).astype(live.dtype)
            self.journal.add(self.step, {"loss": self.step / 2})
            self.trail.extend(self.step, b"", 0.5, b"")
            self.at_step[self.step] = digest(self.arrays())

    def arrays(self) -> Arrays:
        first, bias, moments, updates = (parameter.asnumpy().copy() for parameter in self.parameters)
        return {"conv.weight": first, "cls.bias": bias, "updates": updates,
                "momentum.conv.weight": moments[: first.size].reshape(first.shape),
                "momentum.cls.bias": moments[first.size :]}  # fmt: skip

    def progress(self, metrics: dict[str, float] | None = None) -> Progress:
        return Progress(
            step=self.step, epoch=0, samples=self.step, points=self.journal.pending(), entries=self.trail.pending(),
            certificate=self.trail.digest, metrics=metrics or {},
        )  # fmt: skip

    def save(self) -> None:
        self.writer.save(self.progress())

    def idle(self) -> None:
        until(lambda: not self.writer.busy)

    def train_and_save(self, num_steps: int) -> None:
        """That many steps, each with a checkpoint of its own."""
        for _ in range(num_steps):
            self.train()
            self.save()
            self.idle()

    def collected(self) -> None:
        until(lambda: not self.writer.collecting)

    def close(self) -> None:
        self.store.release()
        self.idle()
        self.collected()
        self.journal.close()

    def _committed(self, manifest: Manifest, points: list[Point]) -> None:
        if self.breaks:
            raise ZeroDivisionError
        self.journal.committed(manifest.step)
        self.trail.committed(manifest.step)
        self.manifests.append(manifest)
        self.committed.release()


def make_parameter(name: str, value: np.ndarray[Any, Any]) -> ms.Parameter:
    return ms.Parameter(Tensor(value), name=name, requires_grad=False)


def digest(arrays: Arrays) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        sha256.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return sha256.hexdigest()


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check_chain(run: Run, last: int, *, with_state: Collection[int] | None = None) -> list[Manifest]:
    """States are those of their steps, and each point and certificate entry up to `last` is there once.

    Returns the line of manifests, newest first. `with_state` are the steps that have one; by default all.
    """
    newest = run.chain.newest()
    assert newest is not None and newest.step == last
    line = run.chain.history(newest)
    points: list[Point] = []
    entries: list[certificate.Entry] = []
    for manifest in reversed(line):
        if with_state is None or manifest.step in with_state:
            run.chain.verify(manifest)
            assert digest(read_arrays(run.chain.read(manifest, STATE), manifest.name)) == run.at_step[manifest.step]
        points += from_lines(run.chain.read(manifest, METRICS), manifest.name)
        entries += certificate.from_lines(run.chain.read(manifest, certificate.FILE), manifest.name)
    assert [point.step for point in points] == list(range(1, last + 1))
    assert [entry.step for entry in entries] == list(range(1, last + 1))
    return line
