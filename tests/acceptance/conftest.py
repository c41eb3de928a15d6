"""One local stack for what needs nothing but a stack; nothing of it may be left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rex import Rex


@pytest.fixture(scope="package")
def rex() -> Iterator[Rex]:
    """Not up yet: the first command that needs the stack starts it, and a test may take it down."""
    with tempfile.TemporaryDirectory(prefix="rex") as folder:
        rex = Rex(Path(folder), slots=2)
        try:
            yield rex
        finally:
            assert rex("down", "--now").returncode == 0
            assert rex.own_processes() == []
