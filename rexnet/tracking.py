"""MLflow, behind the training: one thread that sends what the journal holds and never blocks or ends anything.

The job's run gets a point once a committed manifest covers it; the attempt's child run shows it at once. A point that
the job's run has for its key and step is not sent again, so neither a replay nor steps trained twice (after a
damaged checkpoint, say) fold a curve.

    python -m rexnet.tracking replay --store URI --run-id ID     all committed points of the newest live chain
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs.contract import Exit
from jobs.errors import IntegrityError, RexError, StoreUnavailable, TrackingUnavailable, UserError
from jobs.files import METRICS
from jobs.manifest import Manifest
from rexnet.journal import Point, from_lines

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
MAX_QUEUED = 10_000  # messages; a live view's points are dropped beyond, committed ones are replayed from the store
BATCH = 1000  # MLflow's limit of metrics a request
PARAM_BATCH = 100
RETRY_S, MAX_RETRY_S = 1.0, 30.0


def connect(uri: str) -> MlflowClient:
    """A client whose every call ends soon: MLflow's own retries would block for minutes when its server is away."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow.tracking import MlflowClient  # two seconds to import: never on the training thread's path

    return MlflowClient(tracking_uri=uri)


@dataclass
class JobRun:
    """The job's run, with what it has already."""

    client: MlflowClient
    run_id: str
    _steps: dict[str, set[int]] = field(default_factory=dict)

    def send(self, points: Iterable[Point]) -> int:
        """Send the points that the run lacks; returns their number. MLflow's errors pass through."""
        missing = [point for point in points if point.step not in self._known(point.key)]
        send_points(self.client, self.run_id, missing)
        for point in missing:
            self._steps[point.key].add(point.step)
        return len(missing)

    def _known(self, key: str) -> set[int]:
        if key not in self._steps:
            self._steps[key] = {metric.step for metric in self.client.get_metric_history(self.run_id, key)}
        return self._steps[key]


def send_points(client: MlflowClient, run_id: str, points: list[Point]) -> None:
    """Send points in batches that MLflow takes."""
    from mlflow.entities import Metric

    for start in range(0, len(points), BATCH):
        metrics = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in points[start : start + BATCH]]
        client.log_batch(run_id, metrics=metrics)


def committed_points(store: CheckpointStore, newest: Manifest) -> list[Point]:
    """All points that the chain up to `newest` covers, oldest first. A damaged segment is left out, with a warning."""
    points: list[Point] = []
    for manifest in reversed(store.history(newest)):
        if all(entry.name != METRICS for entry in manifest.files):
            continue  # of a program that keeps no journal
        try:
            points.extend(from_lines(store.read(manifest, METRICS), manifest.name))
        except IntegrityError as error:
            log.warning("action=segment-lost manifest=%s cause=%s; its points are missing", manifest.name, error)
    return points


class Tracker:
    """Sends in a thread of its own; every method returns at once. Without a tracking URI it does nothing.

    What cannot be sent is tried again, later and later; the first failure and the first success after it are logged.
    """

    def __init__(
        self, *, run_id: str | None, attempt: int, job: str, params: dict[str, Any], on_run: Callable[[str], None]
    ) -> None:
        self._run_id, self._attempt, self._job, self._params, self._on_run = run_id, attempt, job, params, on_run
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(MAX_QUEUED)
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._job_run: JobRun | None = None
        self._child: str | None = None
        self.num_dropped = 0
        self._uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if self._uri:
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()

    def show(self, points: list[Point]) -> None:
        """Points of this attempt, committed or not: to its child run."""
        self._put("show", points)

    def commit(self, points: list[Point]) -> None:
        """Points that a committed manifest now covers: to the job's run."""
        self._put("commit", points)

    def replay(self, store: CheckpointStore, manifest: Manifest) -> None:
        """All points that `manifest` and its ancestors cover: to the job's run."""
        self._put("replay", (store, manifest))

    def close(self, status: str, timeout_s: float = 3.0) -> bool:
        """Send what is left within `timeout_s`; end the child run as FINISHED, KILLED or FAILED. True if all went."""
        if self._thread is None:
            return True
        self._put("end", status)
        self._closing.set()
        self._thread.join(timeout_s)
        done = not self._thread.is_alive()
        if not done:
            self._abandoned.set()
            log.warning("action=tracking-unflushed left=%d; committed points are replayed later", self._queue.qsize())
        return done

    def _put(self, kind: str, body: Any) -> None:
        if self._thread is None:
            return
        try:
            self._queue.put_nowait((kind, body))
        except queue.Full:
            self.num_dropped += 1  # correctness is untouched: the manifests in the store hold every committed point

    def _work(self) -> None:
        while True:
            kind, body = self._gather()
            delay, warned = RETRY_S, False
            while True:
                try:
                    self._handle(kind, body)
                    break
                except Exception as error:  # whatever MLflow raises: training must go on without it
                    if not warned:
                        log.warning("action=tracking-away cause=%s: %s", type(error).__name__, str(error)[:300])
                    warned = True
                    if self._abandoned.wait(min(delay, 0.5) if self._closing.is_set() else delay):
                        return  # nobody waits for it any more, and the process may live on
                    delay = min(delay * 2, MAX_RETRY_S)
            if warned:
                log.warning("action=tracking-back")
            if kind == "end":
                return

    def _gather(self) -> tuple[str, Any]:
        """The next message, with the points of all of its kind that follow at once."""
        kind, body = self._queue.get()
        if kind == "show":
            body = list(body)
            time.sleep(0 if self._closing.is_set() else 1.0)  # a request a second is live enough
            while self._queue.queue and self._queue.queue[0][0] == "show" and len(body) < BATCH:
                body.extend(self._queue.get()[1])
        return kind, body

    def _handle(self, kind: str, body: Any) -> None:
        if self._job_run is None:
            self._job_run = self._open_runs(connect(self._uri))
        client = self._job_run.client
        assert self._child is not None
        if kind == "show":
            send_points(client, self._child, body)
        elif kind == "commit":
            self._job_run.send(body)
        elif kind == "replay":
            store, manifest = body
            self._job_run.send(committed_points(store, manifest))
        else:
            client.set_terminated(self._child, body)

    def _open_runs(self, client: MlflowClient) -> JobRun:
        """Find or make the job's run and this attempt's child run. Safe to repeat after it failed half-way."""
        from mlflow.entities import Param

        if self._run_id is None:
            self._run_id = self._bare_run(client)
        run = client.get_run(self._run_id)
        known = set(run.data.params)
        params = [Param(key, str(value)) for key, value in self._params.items() if key not in known]
        for start in range(0, len(params), PARAM_BATCH):
            client.log_batch(self._run_id, params=params[start : start + PARAM_BATCH])
        if self._child is None:
            tags = {"mlflow.parentRunId": self._run_id, "rexnet.attempt": str(self._attempt)}
            name = f"attempt-{self._attempt}"
            self._child = client.create_run(run.info.experiment_id, tags=tags, run_name=name).info.run_id
        self._on_run(self._run_id)
        return JobRun(client, self._run_id)

    def _bare_run(self, client: MlflowClient) -> str:
        """The run of a job that nobody gave one: found by its tag, else made."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "rexnet")
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        found = client.search_runs([experiment_id], f"tags.`rexnet.job` = '{self._job}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        return str(client.create_run(experiment_id, tags={"rexnet.job": self._job}, run_name=self._job).info.run_id)


def replay(store_uri: str, run_id: str) -> int:
    """Send all committed points of the newest live chain to the run; returns how many it lacked."""
    store = CheckpointStore(open_store(store_uri), "")
    listed = next((entry.manifest for entry in store.manifests() if entry.live and entry.manifest), None)
    if listed is not None:
        store = CheckpointStore(open_store(store_uri), listed.job)
    newest = store.newest()
    if newest is None:
        return 0
    points = committed_points(store, newest)
    if not points:
        return 0  # before MLflow is imported, for two seconds
    try:
        return JobRun(connect(os.environ["MLFLOW_TRACKING_URI"]), run_id).send(points)
    except RexError:
        raise
    except Exception as error:
        raise TrackingUnavailable(f"replay into MLflow run {run_id} failed: {type(error).__name__}: {error}") from error


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m rexnet.tracking")
    command = parser.add_subparsers(dest="command", required=True).add_parser("replay")
    command.add_argument("--store", required=True, help="URI of the job's prefix")
    command.add_argument("--run-id", required=True)
    options = parser.parse_args(arguments)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        print("replay: MLFLOW_TRACKING_URI is not set; it says where the run is", file=sys.stderr)
        return Exit.CONFIG
    try:
        number = replay(options.store, options.run_id)
    except (StoreUnavailable, TrackingUnavailable) as error:
        print(f"replay: {error}", file=sys.stderr)
        return Exit.INFRASTRUCTURE
    except UserError as error:
        print(f"replay: {error}", file=sys.stderr)
        return Exit.CONFIG
    print(f"sent {number} points to run {options.run_id}")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
