"""The stores that the one conformance suite runs on, behind one small face."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import boto3

from cluster.storage import ObjectStore, open_store


class Server(Protocol):
    """What answers behind an S3 endpoint, and can be stopped and started again."""

    endpoint: str

    def stop_gateway(self) -> None: ...

    def start_gateway(self) -> None: ...


@dataclass(kw_only=True)
class Backend:
    """An empty store. `environment` is what a process needs to open `uri`; it is set in ours while the test runs."""

    name: str
    uri: str
    environment: dict[str, str] = field(default_factory=dict)
    server: Server | None = None

    def open(self) -> ObjectStore:
        """A client of its own, as another process would have."""
        return open_store(self.uri)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """While inside, the store cannot be reached; afterwards it holds what it held."""
        if self.server is None:
            root = Path(self.uri.removeprefix("file://"))
            away = root.with_name(root.name + "-unmounted")
            root.rename(away)
            try:
                yield
            finally:
                away.rename(root)
            return
        self.server.stop_gateway()
        try:
            yield
        finally:
            self.server.start_gateway()


class MotoServer:
    """moto's S3 in a thread of ours: accepts any credentials and any checksum, so a smoke test."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        from moto.server import ThreadedMotoServer

        self._make, self._address = ThreadedMotoServer, address
        self._port = 0
        self._server: Any = None
        self.endpoint = ""

    def start_gateway(self) -> None:
        self._server = self._make(ip_address=self._address, port=self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()
        self.endpoint = f"http://{self._address}:{self._port}"

    def stop_gateway(self) -> None:
        self._server.stop()


def aws_environment(endpoint: str, access_key: str, secret_key: str) -> dict[str, str]:
    """Everything boto3 would look at, so that nothing of the machine's own settings takes part."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_bucket(name: str) -> None:
    boto3.session.Session().client("s3").create_bucket(Bucket=name)


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]
