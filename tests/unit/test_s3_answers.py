"""Answers that no well-behaved store gives, but proxies, overload and broken lines do."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.storage import ObjectStore, open_store
from cluster.storage.digests import PART_BYTES
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
    assert len(server.asked) == 3 + 6


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


UPLOAD = Answer(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
PART = Answer(200, b"", {"ETag": '"p"'})
COMPLETED = Answer(200, b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
SIZE_BYTES = PART_BYTES + 5


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of two parts."""
    path = tmp_path / "source"
    path.write_bytes(random.Random(4).randbytes(SIZE_BYTES))
    return path


def asked(server: Scripted) -> list[str]:
    """Method and what of the upload it is about."""
    return [f"{line.split()[0]} {line.partition('?')[2].partition('=')[0]}".strip() for line in server.asked]


ROUND = ["POST uploads", "PUT uploadId", "PUT uploadId"]


@pytest.mark.parametrize(
    "refusal", [fault(409, "ConditionalRequestConflict"), fault(409, "OperationAborted"), fault(400, "InvalidPart")]
)
def test_completion_in_conflict_starts_again_from_the_beginning(
    server: Scripted, store: ObjectStore, source: Path, refusal: Answer
) -> None:
    kept = Answer(200, source.read_bytes())
    server.script = [UPLOAD, PART, PART, refusal, Answer(204), UPLOAD, PART, PART, COMPLETED, kept]
    store.put_file("k", source)
    assert asked(server) == [*ROUND, "POST uploadId", "DELETE uploadId", *ROUND, "POST uploadId", "HEAD"]


def test_completion_in_conflict_for_good_is_given_up_and_aborted(
    server: Scripted, store: ObjectStore, source: Path
) -> None:
    conflict = fault(409, "ConditionalRequestConflict")
    server.script = [*[UPLOAD, PART, PART, conflict, Answer(204)] * 3, fault(500, "more was asked")]
    with pytest.raises(StoreUnavailable, match="ConditionalRequestConflict"):
        store.put_file("k", source)
    assert asked(server) == [*ROUND, "POST uploadId", "DELETE uploadId"] * 3


def test_upload_that_the_store_forgot_between_parts_starts_again(
    server: Scripted, store: ObjectStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = fault(404, "NoSuchUpload")
    both, answer = threading.Barrier(2), server.next_answer

    def next_answer(request: str) -> Answer:
        said = answer(request)
        if said is gone and request.startswith("PUT"):
            both.wait(60)  # a part that has not begun when another fails is not sent
        return said

    monkeypatch.setattr(server, "next_answer", next_answer)
    kept = Answer(200, source.read_bytes())
    server.script = [UPLOAD, gone, gone, gone, UPLOAD, PART, PART, COMPLETED, kept]
    store.put_file("k", source)
    assert asked(server) == [*ROUND, "DELETE uploadId", *ROUND, "POST uploadId", "HEAD"]


def test_completion_whose_reply_was_lost_is_recognised_by_its_etag(
    server: Scripted, store: ObjectStore, source: Path
) -> None:
    md5 = hashlib.md5(b"a part, as the store saw it")
    etag = f'"{hashlib.md5(2 * md5.digest()).hexdigest()}-2"'
    part = Answer(200, b"", {"ETag": f'"{md5.hexdigest()}"'})
    kept = Answer(200, source.read_bytes(), {"ETag": etag})
    gone = fault(404, "NoSuchUpload")
    server.script = [UPLOAD, part, part, fault(503, "SlowDown"), gone, kept, kept]
    store.put_file("k", source)
    assert asked(server) == [*ROUND, "POST uploadId", "POST uploadId", "HEAD", "HEAD"]
    for parts, seen in ((part, Answer(200, source.read_bytes(), {"ETag": '"other"'})), (PART, kept)):
        server.asked.clear()
        server.script = [UPLOAD, parts, parts, gone, seen, Answer(204), UPLOAD, parts, parts, COMPLETED, kept]
        store.put_file("k", source)
        assert asked(server)[3:6] == ["POST uploadId", "HEAD", "DELETE uploadId"]


def test_upload_that_the_store_forgot_before_its_completion_starts_again(
    server: Scripted, store: ObjectStore, source: Path
) -> None:
    gone, kept = fault(404, "NoSuchUpload"), Answer(200, source.read_bytes())
    server.script = [UPLOAD, PART, PART, gone, Answer(404), Answer(204), UPLOAD, PART, PART, COMPLETED, kept]
    store.put_file("k", source)
    assert asked(server) == [*ROUND, "POST uploadId", "HEAD", "DELETE uploadId", *ROUND, "POST uploadId", "HEAD"]


def test_part_that_is_refused_for_good_aborts_the_upload(server: Scripted, store: ObjectStore, source: Path) -> None:
    server.script = [UPLOAD, fault(403, "AccessDenied")]
    with pytest.raises(StoreUnavailable, match="AccessDenied"):
        store.put_file("k", source)
    assert asked(server)[-1] == "DELETE uploadId"
    assert 3 <= len(server.asked) <= 4  # no part was tried twice


def part_of(body: bytes, start: int, etag: str) -> Answer:
    end = min(start + PART_BYTES, len(body))
    return Answer(206, body[start:end], {"ETag": f'"{etag}"', "Content-Range": f"bytes {start}-{end - 1}/{len(body)}"})


def test_object_replaced_while_it_is_downloaded_is_read_from_the_beginning(
    server: Scripted, store: ObjectStore, tmp_path: Path
) -> None:
    old, new = (random.Random(seed).randbytes(SIZE_BYTES) for seed in (5, 6))
    server.script = [part_of(old, 0, "o"), part_of(new, PART_BYTES, "n")]
    server.script += [part_of(new, 0, "n"), part_of(new, PART_BYTES, "n")]
    assert store.get_file("k", tmp_path / "t") == hashlib.sha256(new).hexdigest()
    assert (tmp_path / "t").read_bytes() == new
    server.script = [part_of(old, 0, "o"), part_of(new, PART_BYTES, "n")] * 3 + [fault(500, "more was asked")]
    with pytest.raises(StoreUnavailable, match="replaced again and again"):
        store.get_file("k", tmp_path / "t")


def test_range_that_is_not_the_one_asked_for_is_never_taken(
    server: Scripted, store: ObjectStore, tmp_path: Path
) -> None:
    body = random.Random(7).randbytes(SIZE_BYTES)
    server.script = [part_of(body, 0, "o"), part_of(body, 0, "o")] * 3 + [fault(500, "more was asked")]
    with pytest.raises(StoreUnavailable):
        store.get_file("k", tmp_path / "t")


def test_store_that_knows_no_ranges_sends_the_whole(server: Scripted, store: ObjectStore, tmp_path: Path) -> None:
    body = random.Random(8).randbytes(SIZE_BYTES)
    server.script = [Answer(200, body)]
    assert store.get_file("k", tmp_path / "t") == hashlib.sha256(body).hexdigest()
    assert len(server.asked) == 1


def test_store_that_refuses_the_condition_is_told_from_one_that_is_taken(server: Scripted, store: ObjectStore) -> None:
    server.script = [fault(501, "NotImplemented")]
    with pytest.raises(StoreUnavailable, match=r"NotImplemented to If-None-Match \(.*storage doctor"):
        store.create("k", b"x")


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("RequestTimeTooSkewed", "set this machine's clock"),
        ("AccessDenied", "the bucket's policy"),
        ("NoSuchBucket", "create the bucket"),
        ("QuotaExceeded", "quota is used up"),
        ("XMinioStorageFull", "the store is full"),
    ],
)
def test_refusal_says_what_to_do(server: Scripted, store: ObjectStore, code: str, hint: str) -> None:
    server.script = [fault(403, code)]
    with pytest.raises(StoreUnavailable, match=rf"cannot create k: the store answered {code} .*{hint}"):
        store.create("k", b"x")


def test_missing_credentials_are_a_clear_sentence(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreUnavailable, match=r"no credentials were found \(set AWS_PROFILE"):
        open_store("s3://bucket/prefix").get("k")
    assert server.asked == []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    with pytest.raises(StoreUnavailable, match="the credentials are incomplete"):
        open_store("s3://bucket/prefix").get("k")


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[str]:
    """A TLS server whose certificate nobody has signed; its URL."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    tls = Scripted(("127.0.0.1", 0), Handler)
    tls.asked, tls.script = [], [Answer(200, b"x")]
    tls.socket = context.wrap_socket(tls.socket, server_side=True, do_handshake_on_connect=False)
    tls.handle_error = lambda *_: None  # type: ignore[method-assign]  # the client turns away, as it should
    thread = threading.Thread(target=tls.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"https://127.0.0.1:{tls.server_port}"
    tls.shutdown()
    thread.join()
    tls.server_close()


def test_certificate_that_nobody_signed_is_a_tls_failure(
    server: Scripted, tls_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.storage.s3.CONNECT_TIMEOUT_S", 60.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", tls_server)
    with pytest.raises(StoreUnavailable, match=r"TLS handshake failed .*AWS_CA_BUNDLE"):
        open_store("s3://bucket/prefix").get("k")


def test_endpoint_without_tls_where_https_is_asked_for_is_a_tls_failure(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.storage.s3.CONNECT_TIMEOUT_S", 60.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.server_port}")
    with pytest.raises(StoreUnavailable, match="TLS handshake failed"):
        open_store("s3://bucket/prefix").get("k")


def test_endpoint_that_cannot_be_reached_is_a_clear_sentence(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # does not listen, and nobody else can
        for endpoint in (f"http://127.0.0.1:{taken.getsockname()[1]}", "http://no-such-host.invalid"):
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            with pytest.raises(StoreUnavailable, match=r"could not be reached \(check AWS_ENDPOINT_URL"):
                open_store("s3://bucket/prefix").get("k")


def test_endpoint_that_never_answers_times_out(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.storage.s3.READ_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreUnavailable, match=r"the answer timed out \(check AWS_ENDPOINT_URL"):
            open_store("s3://bucket/prefix").get("k")
