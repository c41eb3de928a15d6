"""Answers that no well-behaved store gives, but proxies, overload and broken lines do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.storage import ObjectStore, open_store
from jobs.errors import AlreadyExistsError, ObjectNotFound, StoreUnavailable
from tests.conformance.backends import aws_environment

ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>m</Message></Error>'


@dataclass
class Answer:
    """What the server says to one request; `cut` closes the line that many bytes before the promised end."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0


class Scripted(ThreadingHTTPServer):
    """Gives the scripted answers in turn, the last one for ever; remembers what was asked."""

    script: list[Answer]
    asked: list[str]
    daemon_threads = True

    def next_answer(self, request: str) -> Answer:
        self.asked.append(request)
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class Handler(BaseHTTPRequestHandler):
    server: Scripted
    protocol_version = "HTTP/1.1"  # answers Expect: 100-continue

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.next_answer(f"{self.command} {self.path}")
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) - answer.cut])
        self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer

    def log_message(self, *_: object) -> None:
        """Quiet: `asked` tells more."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    scripted = Scripted(("127.0.0.1", 0), Handler)
    scripted.asked = []
    thread = threading.Thread(target=scripted.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in aws_environment(f"http://127.0.0.1:{scripted.server_port}", "key", "secret").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield scripted
    scripted.shutdown()
    thread.join()
    scripted.server_close()


@pytest.fixture
def store(server: Scripted) -> ObjectStore:
    return open_store("s3://bucket/prefix")


def fault(status: int, code: str) -> Answer:
    return Answer(status, ERROR.format(code=code).encode(), {"Content-Type": "application/xml"})


UNKNOWN = [
    fault(500, "InternalError"),
    fault(503, "SlowDown"),
    fault(403, "AccessDenied"),
    fault(404, "NoSuchBucket"),
    fault(404, "NoSuchUpload"),
    fault(400, "SomethingNew"),
    fault(301, "PermanentRedirect"),
    Answer(404, b"<html>nginx: not found</html>"),
    Answer(404, b""),
    Answer(502, b"<html>bad gateway</html>"),
    Answer(403, b""),
]


@pytest.mark.parametrize("answer", UNKNOWN, ids=lambda answer: f"{answer.status}-{answer.body[28:60].decode()}")
def test_answer_that_says_nothing_of_the_object_is_not_knowing(
    server: Scripted, store: ObjectStore, tmp_path: Path, answer: Answer
) -> None:
    server.script = [answer]
    (tmp_path / "f").write_bytes(b"x")
    operations: list[Callable[[], object]] = [
        lambda: store.get("k"),
        lambda: store.get_file("k", tmp_path / "t"),
        lambda: store.list(""),
        lambda: store.create("k", b"x"),
        lambda: store.put_file("k", tmp_path / "f"),
    ]
    for operation in operations:
        with pytest.raises(StoreUnavailable):
            operation()


def test_no_such_key_is_definite(server: Scripted, store: ObjectStore) -> None:
    server.script = [fault(404, "NoSuchKey")]
    with pytest.raises(ObjectNotFound):
        store.get("k")


def test_body_cut_short_for_good_is_not_knowing_never_a_short_object(
    server: Scripted, store: ObjectStore, tmp_path: Path
) -> None:
    server.script = [Answer(200, b"x" * 5000, cut=100)]
    with pytest.raises(StoreUnavailable):
        store.get("k")
    with pytest.raises(StoreUnavailable):
        store.get_file("k", tmp_path / "t")
    assert len(server.asked) == 6  # three tries each


def test_body_cut_short_once_is_asked_for_again(server: Scripted, store: ObjectStore, tmp_path: Path) -> None:
    whole = os.urandom(5000)
    for _ in range(2):
        server.script = [Answer(200, whole, cut=100), Answer(200, whole)]
        assert store.get("k") == whole
        server.script = [Answer(200, whole, cut=100), Answer(200, whole)]
        store.get_file("k", tmp_path / "t")
        assert (tmp_path / "t").read_bytes() == whole


def test_create_whose_reply_was_lost_finds_its_own_bytes(server: Scripted, store: ObjectStore) -> None:
    server.script = [fault(412, "PreconditionFailed"), Answer(200, b"mine")]
    store.create("k", b"mine")
    assert [request.split()[0] for request in server.asked] == ["PUT", "GET"]


def test_create_that_finds_other_bytes_is_taken(server: Scripted, store: ObjectStore) -> None:
    server.script = [fault(412, "PreconditionFailed"), Answer(200, b"theirs")]
    with pytest.raises(AlreadyExistsError):
        store.create("k", b"mine")


def test_create_taken_but_unreadable_is_not_knowing(server: Scripted, store: ObjectStore) -> None:
    server.script = [fault(412, "PreconditionFailed"), fault(503, "SlowDown")]
    with pytest.raises(StoreUnavailable):
        store.create("k", b"mine")


def test_create_in_conflict_with_others_is_sent_again(server: Scripted, store: ObjectStore) -> None:
    server.script = [fault(409, "ConditionalRequestConflict"), Answer(200)]
    store.create("k", b"mine")
    assert [request.split()[0] for request in server.asked] == ["PUT", "PUT"]


def test_upload_that_is_kept_with_another_size_is_not_trusted(
    server: Scripted, store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"x" * 10)
    server.script = [Answer(200), Answer(200, b"x" * 9)]
    with pytest.raises(StoreUnavailable, match="10 bytes and is kept with 9"):
        store.put_file("k", tmp_path / "f")
