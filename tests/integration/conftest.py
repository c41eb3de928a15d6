"""One local stack for all integration tests; at the end nothing of it may be left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rex import Rex


@pytest.fixture(scope="session")
def rex() -> Iterator[Rex]:
    with tempfile.TemporaryDirectory(prefix="rex") as folder:  # short: Ray's sockets live below it
        rex = Rex(Path(folder), slots=2)
        brought_up = rex("up")
        assert brought_up.returncode == 0, brought_up.stderr
        try:
            yield rex
        finally:
            down = rex("down", "--now")
        assert down.returncode == 0, down.stderr
        assert rex.own_processes() == []
