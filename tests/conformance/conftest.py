"""`store`: an open client on `backend` (tests/conftest.py), for the tests that need no more than that."""

from __future__ import annotations

import pytest

from cluster.storage import ObjectStore
from tests.conformance.backends import Backend


@pytest.fixture
def store(backend: Backend) -> ObjectStore:
    return backend.open()
