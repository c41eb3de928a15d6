"""A body that is altered on its way is refused by a real server, sent again, and never kept."""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.storage import ObjectStore
from jobs.errors import StoreUnavailable
from tests.conformance.backends import Backend
from tests.support.proxies import BreakingLine, _Line

pytestmark = pytest.mark.parametrize("backend", ["radosgw"], indirect=True)  # moto accepts any


class AlteringLine(BreakingLine):
    """Flips a bit in each of the next `num_flips` MiB of bodies that go to the store."""

    def __init__(self, upstream: str, *, num_flips: int) -> None:
        super().__init__(upstream)
        self.RequestHandlerClass = _AlteringHandler
        self.num_flips = num_flips

    def flips(self) -> bool:
        with self.lock:
            self.num_flips -= 1
            return self.num_flips >= 0


class _AlteringHandler(_Line):
    server: AlteringLine

    def _carry(self, source: socket.socket, target: socket.socket, cuts: list[int], up: bool) -> None:
        carried = 0
        with suppress(OSError):  # the other side has closed
            while block := source.recv(64 << 10):
                if up and len(block) > 8 << 10:  # of a body: headers are shorter, and are sent before it
                    carried += len(block)
                    if carried > 1 << 20 and self.server.flips():
                        carried = 0
                        block = block[:-1] + bytes([block[-1] ^ 1])
                target.sendall(block)
        for line in (source, target):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)


def through(backend: Backend, line: AlteringLine, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.endpoint)
    return backend.open()


def test_part_altered_on_its_way_is_refused_and_sent_again(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.server is not None
    body = random.Random(5).randbytes(40 << 20)
    (tmp_path / "source").write_bytes(body)
    with AlteringLine(backend.server.endpoint, num_flips=2) as line:
        through(backend, line, monkeypatch).put_file("objects/blob", tmp_path / "source")
        assert line.num_flips <= 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", backend.server.endpoint)
    assert backend.open().get_file("objects/blob", tmp_path / "target") == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("write", ["create", "put_file of one part", "put_file of three parts"])
def test_body_altered_every_time_is_an_error_and_nothing_is_kept(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    assert backend.server is not None
    monkeypatch.setattr("cluster.storage.s3_transfer._NUM_TRIES", 2)
    source = tmp_path / "source"
    source.write_bytes(random.Random(6).randbytes((40 if "three" in write else 2) << 20))
    with AlteringLine(backend.server.endpoint, num_flips=1000) as line:
        store = through(backend, line, monkeypatch)
        operation: Callable[[], None] = (
            (lambda: store.create("k", source.read_bytes()))
            if write == "create"
            else lambda: store.put_file("k", source)
        )
        with pytest.raises(StoreUnavailable, match=r"XAmzContentSHA256Mismatch .*altered on its way"):
            operation()
        assert line.num_flips < 1000
    monkeypatch.setenv("AWS_ENDPOINT_URL", backend.server.endpoint)
    assert (backend.open().list(""), backend.open().leftovers("")) == ([], [])
