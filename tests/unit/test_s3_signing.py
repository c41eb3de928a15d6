"""What a body is signed with: the SHA-256 that was computed when the file was hashed, whatever is sent."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from cluster.storage import digest_file, open_store
from cluster.storage.digests import PART_BYTES
from cluster.storage.s3 import S3Store
from tests.conformance.backends import aws_environment

STARTED = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"


class Answer:
    """A body of an answer, as botocore reads it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> list[bytes]:
        return [self._body]


@pytest.fixture(params=["http", "https"])
def sent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[S3Store, list[Any]]:
    """A store whose requests go nowhere, and the requests."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in aws_environment(f"{request.param}://store.invalid", "key", "secret").items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://bucket/prefix")
    assert isinstance(store, S3Store)
    requests: list[Any] = []

    def take(request: Any, **_: object) -> Any:
        requests.append(request)
        headers: Any = {"ETag": '"e"', "Content-Length": str(store_size)}
        return AWSResponse(request.url, 200, headers, Answer(STARTED if request.method == "POST" else b""))

    store_size = 2 * PART_BYTES + 1
    store.client.meta.events.register("before-send.s3", take)
    return store, requests


def payloads(requests: list[Any]) -> Counter[str]:
    found: Counter[str] = Counter()
    for request in requests:
        if request.method == "PUT":
            value = request.headers["X-Amz-Content-SHA256"]
            found[value if isinstance(value, str) else value.decode()] += 1
            assert b"x-amz-content-sha256" in request.headers["Authorization"]
            assert "PayloadSHA256" not in request.url
    return found


def test_parts_are_signed_with_the_digests_of_the_file_that_was_hashed(
    sent: tuple[S3Store, list[Any]], tmp_path: Path
) -> None:
    store, requests = sent
    (tmp_path / "f").write_bytes(bytes(2 * PART_BYTES + 1))
    digests = digest_file(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"x" * (2 * PART_BYTES + 1))
    store.put_file("k", tmp_path / "f", digests)
    assert payloads(requests) == Counter(digests.part_sha256)


def test_body_without_a_known_digest_is_signed_with_its_own(sent: tuple[S3Store, list[Any]]) -> None:
    store, requests = sent
    store.create("k", b"body")
    assert payloads(requests) == Counter([hashlib.sha256(b"body").hexdigest()])


def test_put_with_a_known_digest_is_signed_with_that_one(sent: tuple[S3Store, list[Any]], tmp_path: Path) -> None:
    store, requests = sent
    (tmp_path / "f").write_bytes(b"hashed")
    digests = digest_file(tmp_path / "f")
    known: dict[str, Any] = {"PayloadSHA256": digests.sha256}
    store.client.put_object(Bucket="bucket", Key="k", Body=b"sended", **known)
    assert payloads(requests) == Counter([digests.sha256])
