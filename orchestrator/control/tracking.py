"""The control plane's MLflow client: a run for each job, ended when the job has.

The training program logs into the run; here it is created before the first attempt and, after the last, completed
from the committed journals (whatever an outage held back) and given its final status. A killed run would stay RUNNING
for ever.
"""

from __future__ import annotations

import logging
import os
import subprocess
from typing import TYPE_CHECKING, Any

from jobs.errors import TrackingUnavailable
from jobs.states import State
from orchestrator.control.effects import python_command
from orchestrator.store import JobRow, Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger("rexctl.tracking")
TAG_JOB = "rex.job"
EXPERIMENT = "rexnet"
_REPLAY_S = 600
_STATUS = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "KILLED"}


class Tracking:
    """One MLflow server."""

    def __init__(self, uri: str, store: Store) -> None:
        self.uri, self.store = uri, store
        self._client: MlflowClient | None = None

    def _connected(self) -> MlflowClient:
        """The client, imported when first needed; few and short retries, because the loop's effects retry anyway."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self.uri)
        return self._client

    def ensure_run(self, row: JobRow) -> str:
        """The job's run, found by its tag or created. TrackingUnavailable while the server does not answer."""
        return str(self._ask(self._ensure_run, row))

    def close(self, row: JobRow) -> None:
        """Complete the job's run from the committed journals and give it its final status."""
        run = row.mlflow_run or self.ensure_run(row)
        if row.mlflow_run is None:
            self.store.note(row.id, mlflow_run=run)
        if row.checkpoint is not None:
            self._replay(row, run)
        self._ask(self._terminate, row, run)

    def _ask(self, function: Any, *arguments: Any) -> Any:
        try:
            client = self._connected()
            from mlflow.exceptions import MlflowException
            from requests.exceptions import RequestException
        except ImportError as error:
            raise TrackingUnavailable(f"MLflow cannot be imported: {error}") from error
        try:
            return function(client, *arguments)
        except (MlflowException, RequestException) as error:
            seen = " ".join(str(error).split())[:300]
            raise TrackingUnavailable(f"MLflow at {self.uri} did not answer: {seen}") from error

    @staticmethod
    def _ensure_run(client: MlflowClient, row: JobRow) -> str:
        from mlflow.exceptions import MlflowException

        if row.mlflow_run is not None:
            if client.get_run(row.mlflow_run).info.status != "RUNNING":
                client.update_run(row.mlflow_run, status="RUNNING")  # a resumed job goes on in its own run
            return row.mlflow_run
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                client.create_experiment(EXPERIMENT)
            except MlflowException:  # somebody else was faster; whatever else it was shows in the next line
                _LOG.info("action=create_experiment the experiment %s is there already", EXPERIMENT)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise TrackingUnavailable(f"MLflow took no experiment {EXPERIMENT}")
        experiment_id = experiment.experiment_id
        found = client.search_runs([experiment_id], f"tags.`{TAG_JOB}` = '{row.id}'", max_results=10)
        for run in found:
            if "mlflow.parentRunId" not in run.data.tags:
                return str(run.info.run_id)
        tags = {TAG_JOB: row.id, "rex.name": row.spec.name}
        return str(client.create_run(experiment_id, run_name=row.id, tags=tags).info.run_id)

    def _replay(self, row: JobRow, run: str) -> None:
        """In a process of its own: it reads checkpoints' journals, which only rexnet understands."""
        command = python_command("-m", "rexnet.tracking", "replay", "--store", row.store_uri, "--run-id", run)
        env = {**os.environ, "MLFLOW_TRACKING_URI": self.uri}
        if row.spec.credentials.aws_profile:
            env["AWS_PROFILE"] = row.spec.credentials.aws_profile
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_REPLAY_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise TrackingUnavailable(f"replaying the journals of {row.id} took over {_REPLAY_S} s") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise TrackingUnavailable(f"replaying the journals of {row.id} into MLflow failed: {last}")

    @staticmethod
    def _terminate(client: MlflowClient, row: JobRow, run: str) -> None:
        client.set_tag(run, "rex.state", row.state.value)
        if row.job.cause is not None:
            client.set_tag(run, "rex.cause", row.job.cause.value)
        if row.checkpoint:
            client.set_tag(run, "rex.checkpoint", f"{row.store_uri}/{row.checkpoint['manifest']}")
            client.set_tag(run, "rex.checkpoint.sha256", row.checkpoint["sha256"])
        client.set_terminated(run, status=_STATUS.get(row.state, "KILLED"))
        for child in client.search_runs(
            [client.get_run(run).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run}'", max_results=1000
        ):
            if child.info.status == "RUNNING":
                client.set_terminated(child.info.run_id, status="KILLED")
