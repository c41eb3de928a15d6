"""One local stack for everything here, of which nothing may be left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rex import Rex


@pytest.fixture(scope="package")
def rex() -> Iterator[Rex]:
    with tempfile.TemporaryDirectory(prefix="rex") as folder:  # short: Ray's sockets live below it
        rex = Rex(Path(folder), slots=2, lease_s=40.0, log_limit_mib=1)
        brought_up = rex("up")
        assert brought_up.returncode == 0, brought_up.stderr
        try:
            yield rex
        finally:
            down = rex("down", "--now")
        assert down.returncode == 0, down.stderr
        assert rex.own_processes() == []
