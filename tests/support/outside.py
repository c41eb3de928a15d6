"""What hosts that share nothing else do share: an S3 server and an MLflow server, on the machine around them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3

from tests.conformance.backends import aws_environment
from tests.support.hosts import OUTSIDE
from tests.support.radosgw import ACCESS_KEY, SECRET_KEY, RadosGateway

BUCKET = "runs"
_START_TIMEOUT_S = 120.0
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # two processes instead of nine
    "DO_NOT_TRACK": "1",
}


class Outside:
    """Both servers, up while inside. Each can be stopped (it takes connections and answers none) and go on."""

    def __init__(self, folder: Path, *, memory: int = 2 << 30) -> None:
        self.folder = folder
        (folder / "s3").mkdir(parents=True)
        self._gateway = RadosGateway(folder / "s3", OUTSIDE, memory=memory)
        self._mlflow: subprocess.Popen[bytes] | None = None
        with socket.create_server((OUTSIDE, 0)) as probe:
            self.mlflow_uri = f"http://{OUTSIDE}:{probe.getsockname()[1]}"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to use the S3 server."""
        return aws_environment(self._gateway.endpoint, ACCESS_KEY, SECRET_KEY)

    @property
    def objects(self) -> str:
        return f"s3://{BUCKET}/jobs"

    def stop(self, name: str) -> None:
        if name == "store":
            self._gateway.pause_gateway()
        else:
            self._signal_mlflow(signal.SIGSTOP)

    def start(self, name: str) -> None:
        if name == "store":
            self._gateway.go_on_with_gateway()
        else:
            self._signal_mlflow(signal.SIGCONT)

    def __enter__(self) -> Outside:
        try:
            self._start_mlflow()  # it takes as long as the other one: side by side
            self._gateway.start()
            client = boto3.session.Session().client(
                "s3",
                endpoint_url=self._gateway.endpoint,
                region_name="us-east-1",
                aws_access_key_id=ACCESS_KEY,
                aws_secret_access_key=SECRET_KEY,
            )
            client.create_bucket(Bucket=BUCKET)
            self._wait_for_mlflow()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._gateway.stop()
        if self._mlflow is not None:
            self._signal_mlflow(signal.SIGKILL)
            self._mlflow.wait()

    def _start_mlflow(self) -> None:
        port = self.mlflow_uri.rpartition(":")[2]
        kept = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        kept += ["--artifacts-destination", f"{self.folder}/artifacts"]
        where = [f"--host={OUTSIDE}", f"--port={port}", "--workers=1"]
        with (self.folder / "mlflow.log").open("wb") as log:
            self._mlflow = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    str(Path(sys.executable).with_name("mlflow")),
                    "server",
                    *where,
                    *kept,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **_QUIET},
                start_new_session=True,  # a group of its own, to be stopped as a whole
            )

    def _wait_for_mlflow(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._mlflow_answers():
            assert self._mlflow is not None
            if self._mlflow.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow did not come up: {(self.folder / 'mlflow.log').read_text()[-2000:]}")
            time.sleep(0.2)

    def _mlflow_answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.mlflow_uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _signal_mlflow(self, number: signal.Signals) -> None:
        assert self._mlflow is not None
        os.killpg(self._mlflow.pid, number)
