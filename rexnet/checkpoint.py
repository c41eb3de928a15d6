"""The thread that makes checkpoints of a run's state, behind its back.

A step is blocked by one copy in memory alone; writing, hashing and uploading happen beside the steps after it, however
long they take. At most two copies exist: one that is being committed, and one that waits. A newer one takes the place
of the one that waits. What older checkpoints leave is collected in a thread of its own: no commit waits for that.
"""

from __future__ import annotations

import errno
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from cluster.storage.chain.checkpoints import CheckpointStore
from jobs import certificate
from jobs.errors import CorruptCheckpoint, IntegrityError, RetryableError, SpecError, StoreUnavailable
from jobs.files import METRICS, STATE
from jobs.manifest import Manifest
from jobs.retention import Retention
from rexnet.journal import Point, to_lines
from rexnet.snapshot import Image, State

if TYPE_CHECKING:
    from mindspore import Parameter

log = logging.getLogger(__name__)
HISTORY = (METRICS, certificate.FILE)  # the run's record: kept when the state has been retired
Arrays = dict[str, np.ndarray[Any, Any]]
_COLLECT_EVERY = 10  # commits: each collection reads one checkpoint back
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0  # between the tries of a run's last commit
_LEAVE_S = 2.0  # for a collection that is told to end to clear away what it has on the local disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a checkpoint says besides its arrays. Random state is none: it follows from seed and step."""

    step: int
    epoch: int
    samples: int
    points: list[Point]  # of the journal; those that a commit before it brings are left out then
    entries: list[certificate.Entry]  # of the certificate, likewise
    certificate: str  # after `step`
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after a step, on the host."""

    progress: Progress
    image: Image


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


class _Later(Exception):
    """The run ends: what is left is for the next collection."""


class CheckpointWriter:
    """Commits snapshots of one attempt in the background, in order. Only `finish` waits for the store.

    A commit that fails because something is unavailable is counted and said; its points and certificate entries go
    with the next one. Whatever else ends a commit (fenced off, a second writer, a bug) is raised by the next call.

    Args:
        state: what is saved.
        start: the manifest that the attempt started from.
        constants: keyword arguments of `CheckpointStore.commit` that never change in an attempt.
        on_commit: called in the writer's thread with each manifest and the points that it is the first to cover.
        retention: what to keep of older checkpoints; every few commits the rest is collected, beside the commits.
    """

    def __init__(
        self,
        store: CheckpointStore,
        state: State,
        *,
        attempt: int,
        start: Manifest | None,
        constants: dict[str, Any],
        on_commit: Callable[[Manifest, list[Point]], None],
        retention: Retention | None = None,
    ) -> None:
        self._store, self._state, self._attempt = store, state, attempt
        self._constants, self._on_commit, self._retention = constants, on_commit, retention
        self._finishing = False
        self._collector: threading.Thread | None = None
        self._changed = threading.Condition()  # guards what follows
        self._thread: threading.Thread | None = None
        self._waiting: Snapshot | None = None
        self._writing: Progress | None = None
        self._free: list[Image] = []
        self._error: BaseException | None = None
        self._failure: RetryableError | None = None  # of the newest try, if that was not committed
        self.newest = start
        self.num_committed = self.num_coalesced = self.num_failed = 0
        self.commit_s = 0.0  # seconds that the newest commit took

    @property
    def busy(self) -> bool:
        """Is a commit in flight?"""
        return self._thread is not None

    @property
    def collecting(self) -> bool:
        """Is a collection in flight?"""
        return self._collector is not None and self._collector.is_alive()

    @property
    def failing(self) -> bool:
        """Did the newest try fail?"""
        return self._failure is not None

    def counts(self) -> dict[str, int]:
        """Snapshots by what became of them; a failed or coalesced one is covered by the next that is committed."""
        return {"committed": self.num_committed, "coalesced": self.num_coalesced, "failed": self.num_failed}

    def save(self, progress: Progress) -> None:
        """Copy the state now and commit it in the background. Raises as `check` does."""
        self.check()
        image = self._claim_image(f"step {progress.step} takes its place")
        image.copy()
        self._submit(Snapshot(progress, image))

    def check(self) -> None:
        """Raise what must end the attempt, if the writer met it; to be called at every step."""
        if self._error is not None:
            raise self._error

    def finish(self, progress: Progress, *, timeout_s: float) -> None:
        """See to it that a commit of this progress, the run's last, is durable; nothing to do if one is.

        Waits for the commit in flight, drops the snapshot that waits, and tries for `timeout_s` seconds in all. A
        collection in flight is told to end, and not waited for until the commit is durable.

        Raises:
            StoreUnavailable: the time is over; the newest checkpoint is the previous one.
            others: as `check` does.
        """
        deadline, pause = time.monotonic() + timeout_s, _PAUSE_S
        self._finishing = True
        with self._changed:
            if self._waiting is not None:
                self._free.append(self._claim_image(f"step {progress.step} is the last"))
        self._wait_until(deadline)
        while not self._covers(progress):
            image = self._claim_image("")
            image.copy()
            self._submit(Snapshot(progress, image))
            self._wait_until(deadline)
            if self._failure is not None:
                if time.monotonic() + pause > deadline:
                    raise StoreUnavailable(
                        f"step {progress.step} was not committed within {timeout_s:.0f} s: {self._failure}"
                    ) from self._failure
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        if self._collector is not None:
            self._collector.join(max(0.0, min(deadline - time.monotonic(), _LEAVE_S)))

    def _covers(self, progress: Progress) -> bool:
        """Does the newest manifest say all of this? It may lack the metrics: their validation was interrupted then."""
        newest = self.newest
        return newest is not None and newest.step == progress.step and not (progress.metrics and not newest.metrics)

    def _wait_until(self, deadline: float) -> None:
        """Wait until no commit is in flight; StoreUnavailable if one is at the deadline. Raises as `check` does."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._thread is None, max(0.0, deadline - time.monotonic())):
                step = self._writing.step if self._writing else "?"
                raise StoreUnavailable(
                    f"the commit of step {step} is still in flight", hint="the checkpoint before it stands"
                )
        self.check()

    def _claim_image(self, why: str) -> Image:
        """Memory to copy into: that of the snapshot that waits, for the new one takes its place; else what is free."""
        with self._changed:
            replaced, self._waiting = self._waiting, None
            if replaced is None:
                return self._free.pop() if self._free else Image(self._state)
            self.num_coalesced += 1
            step = self._writing.step if self._writing else "?"
        log.warning("action=checkpoint-coalesced step=%d cause=step %s is still being committed; %s",
                    replaced.progress.step, step, why)  # fmt: skip
        return replaced.image

    def _submit(self, snapshot: Snapshot) -> None:
        with self._changed:
            self._waiting = snapshot
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        """The thread: commits what waits until nothing does. However it ends, `busy` ends with it."""
        try:
            while (snapshot := self._next()) is not None:
                self._try(snapshot)
                with self._changed:
                    self._free.append(snapshot.image)
        except BaseException as error:  # a bug: raised in the training thread by check()
            with self._changed:
                self._error = error
                self._rest()

    def _next(self) -> Snapshot | None:
        with self._changed:
            snapshot, self._waiting = self._waiting, None
            if snapshot is None or self._error is not None:
                self._rest()
                return None
            self._writing = snapshot.progress
            return snapshot

    def _rest(self) -> None:
        self._thread = self._writing = None
        self._changed.notify_all()

    def _try(self, snapshot: Snapshot) -> None:
        began, step = time.monotonic(), snapshot.progress.step
        try:
            self._commit(snapshot)
        except RetryableError as error:
            self._failure = error
            self.num_failed += 1
            log.warning("action=checkpoint-failed step=%d seconds=%.1f cause=%s; training goes on, the next covers it",
                        step, time.monotonic() - began, error)  # fmt: skip
        except BaseException as error:  # raised in the training thread by check()
            self._error = error
        else:
            self._failure = None
            self.num_committed += 1
            if self._retention is not None and self.num_committed % _COLLECT_EVERY == 0:
                self._begin_collection(self._retention)
        self.commit_s = time.monotonic() - began

    def _begin_collection(self, retention: Retention) -> None:
        if self._finishing or self.collecting:
            return  # the next one takes what this one would have
        self._collector = threading.Thread(target=self._collect, args=(retention,), name="collect", daemon=True)
        self._collector.start()

    def _collect(self, retention: Retention) -> None:
        """The collector's thread: let older states go. A failure costs room, and no checkpoint."""

        def go_on() -> None:
            if self._finishing:
                raise _Later

        try:
            done = self._store.collect(retention, go_on=go_on)
            log.info("action=checkpoints-collected retired=%d objects=%d size_bytes=%d %s",
                     len(done.retired), len(done.objects), done.size_bytes, done.note)  # fmt: skip
        except _Later:
            log.info("action=collection-interrupted: the next one goes on")
        except (RetryableError, IntegrityError, OSError) as error:
            log.warning("action=collection-failed cause=%s; nothing that is kept is touched", error)
        except BaseException as error:  # a bug: raised in the training thread by check()
            self._error = error

    def _commit(self, snapshot: Snapshot) -> None:
        progress, parent = snapshot.progress, self.newest
        # A commit that was in flight when this snapshot was taken has brought some of its records by now.
        covered = parent.step if parent is not None and parent.attempt == self._attempt else -1
        points = [point for point in progress.points if point.step > covered]
        entries = [entry for entry in progress.entries if entry.step > covered]
        try:
            with tempfile.TemporaryDirectory(
                prefix="checkpoint-", dir=Path.cwd(), ignore_cleanup_errors=True
            ) as folder:
                files = {name: Path(folder) / name for name in (STATE, *HISTORY)}
                files[STATE].write_bytes(snapshot.image.body)
                files[METRICS].write_bytes(to_lines(points))
                files[certificate.FILE].write_bytes(certificate.to_lines(entries))
                manifest = self._store.commit(
                    attempt=self._attempt,
                    step=progress.step,
                    epoch=progress.epoch,
                    samples=progress.samples,
                    parent=parent.name if parent is not None else None,
                    files=files,
                    history=HISTORY,
                    certificate=progress.certificate,
                    metrics=progress.metrics,
                    **self._constants,
                )
        except OSError as error:  # of the local disk: a store translates its own
            name = errno.errorcode.get(error.errno or 0, "unknown error")
            raise StoreUnavailable(
                f"step {progress.step} cannot be written to {error.filename or Path.cwd()}: {name}, {error.strerror}",
                hint="the attempt's folder needs room for one checkpoint",
            ) from error
        self.newest = manifest
        self._on_commit(manifest, points)


def parse_init_from(text: str) -> tuple[str, str, str]:
    """(store URI, manifest name, its sha256) of the JSON in REX_INIT_FROM. SpecError if it is not that."""
    try:
        values = json.loads(text)
        return str(values["store"]), str(values["manifest"]), str(values["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"REX_INIT_FROM={text!r} is not {{store, manifest, sha256}}: {error!r}") from error
