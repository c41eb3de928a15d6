"""What several integration tests share: compiled graphs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs that runs under msrun have compiled: the first of a kind compiles, the others take its graphs."""
    return tmp_path_factory.mktemp("graphs")
