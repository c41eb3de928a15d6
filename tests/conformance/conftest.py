"""`backend`: each test of this folder that asks for it runs on a directory, on moto and on a real radosgw."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.storage import ObjectStore
from tests.conformance.backends import Backend, MotoServer, aws_environment, make_bucket
from tests.support.radosgw import ACCESS_KEY, SECRET_KEY, RadosGateway, missing_for_radosgw


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    server = MotoServer()
    server.start_gateway()
    yield server
    server.stop_gateway()


@pytest.fixture(scope="session")
def radosgw() -> Iterator[RadosGateway]:
    missing = missing_for_radosgw()
    if missing:
        pytest.skip(f"not run: radosgw: {missing}")
    with tempfile.TemporaryDirectory(prefix="rex-rgw-") as folder:  # short: unix socket names end at 107 bytes
        server = RadosGateway(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(params=["directory", "moto", "radosgw"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if request.param == "directory":
        root = tmp_path / "store"
        root.mkdir()
        return Backend(name="directory", uri=f"file://{root}")
    if request.param == "moto":
        server = request.getfixturevalue("moto_server")
        environment = aws_environment(server.endpoint, "any", "any")
    else:
        server = request.getfixturevalue("radosgw")
        environment = aws_environment(server.endpoint, ACCESS_KEY, SECRET_KEY)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{uuid.uuid4().hex[:12]}"
    make_bucket(bucket)
    return Backend(name=request.param, uri=f"s3://{bucket}/jobs/j1", environment=environment, server=server)


@pytest.fixture
def store(backend: Backend) -> ObjectStore:
    return backend.open()
