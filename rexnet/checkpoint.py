"""Snapshots of the device's state, and the thread that makes checkpoints of them.

A step is blocked by the copy alone; writing, hashing and uploading happen behind it, one checkpoint at a time.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from cluster.storage.checkpoints import CheckpointStore
from jobs import certificate
from jobs.errors import CorruptCheckpoint, RetryableError, SpecError
from jobs.manifest import Manifest
from rexnet.journal import Point, to_lines

if TYPE_CHECKING:
    from mindspore import Parameter

log = logging.getLogger(__name__)
STATE, METRICS = "state.safetensors", "metrics.jsonl"
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a resume needs after `step`: random state is none, it follows from seed and step."""

    step: int
    epoch: int
    samples: int
    arrays: Arrays
    points: list[Point]  # journal since the parent manifest
    entries: list[certificate.Entry]  # certificate since the parent manifest
    certificate: str  # after `step`
    metrics: dict[str, float]


def copy_arrays(parameters: Iterable[Parameter]) -> Arrays:
    """Copies by name: `Parameter.asnumpy()` aliases live memory, which the next step changes."""
    return {parameter.name: parameter.asnumpy().copy() for parameter in parameters}


def read_arrays(body: bytes, source: str) -> Arrays:
    """The arrays in a safetensors file; CorruptCheckpoint if it is none."""
    try:
        arrays: Arrays = load_tensors(body)
    except SafetensorError as error:
        raise CorruptCheckpoint(f"{source} is no safetensors file: {error}") from error
    return arrays


class CheckpointWriter:
    """Commits snapshots of one attempt in the background, in order; a failed one leaves its points to the next.

    `constants` are the keyword arguments of `CheckpointStore.commit` that never change in an attempt. `on_commit` is
    called in the writer's thread with each manifest and its points.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        attempt: int,
        parent: str | None,
        constants: dict[str, Any],
        on_commit: Callable[[Manifest, list[Point]], None],
    ) -> None:
        self._store, self._attempt, self._constants, self._on_commit = store, attempt, constants, on_commit
        self._parent = parent
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.num_skipped = 0
        self.newest: Manifest | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def skip(self, step: int) -> None:
        self.num_skipped += 1
        log.warning("action=checkpoint-skipped step=%d cause=the one before is still being written", step)

    def start(self, snapshot: Snapshot) -> None:
        """Begin to commit. Raises what ended an earlier commit, unless that was mere unavailability."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what must end the attempt: fenced off, a second writer, a bug. An absent store is only logged."""
        if self._error is None or self.busy:
            return
        error, self._error = self._error, None
        if not isinstance(error, RetryableError):
            raise error
        log.warning("action=checkpoint-failed cause=%s; training goes on, the next one covers it", error)

    def wait(self) -> None:
        """Wait for the commit in flight; raises as `check` does."""
        self._join()
        self.check()

    def finish(self, snapshot: Snapshot) -> None:
        """Commit this snapshot for certain, in this thread; raises whatever prevents it. `wait` comes first."""
        self.newest = self._commit(snapshot)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, snapshot: Snapshot) -> None:
        try:
            self.newest = self._commit(snapshot)
        except BaseException as error:  # handed to the training thread by check()
            self._error = error

    def _commit(self, snapshot: Snapshot) -> Manifest:
        with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=Path.cwd()) as folder:
            state, metrics = Path(folder) / STATE, Path(folder) / METRICS
            state.write_bytes(save_tensors(snapshot.arrays))
            metrics.write_bytes(to_lines(snapshot.points))
            trail = Path(folder) / certificate.FILE
            trail.write_bytes(certificate.to_lines(snapshot.entries))
            manifest = self._store.commit(
                attempt=self._attempt,
                step=snapshot.step,
                epoch=snapshot.epoch,
                samples=snapshot.samples,
                parent=self._parent,
                files={STATE: state, METRICS: metrics, certificate.FILE: trail},
                certificate=snapshot.certificate,
                metrics=snapshot.metrics,
                **self._constants,
            )
        self._parent = manifest.name
        self._on_commit(manifest, snapshot.points)
        return manifest


def parse_init_from(text: str) -> tuple[str, str, str]:
    """(store URI, manifest name, its sha256) of the JSON in REX_INIT_FROM. SpecError if it is not that."""
    try:
        values = json.loads(text)
        return str(values["store"]), str(values["manifest"]), str(values["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"REX_INIT_FROM={text!r} is not {{store, manifest, sha256}}: {error!r}") from error
