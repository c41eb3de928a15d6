"""Any S3 as object store, through boto3: AWS, Ceph, MinIO, Huawei OBS.

An accepted upload proves little (Ceph takes a wrong checksum), and a condition on a multipart upload's completion may
be ignored (Ceph again). So what must be create-only is one single-part PUT with If-None-Match, and what must be right
is read back. Checksum trailers are sent only where S3 requires them: Ceph over TLS and OBS do not take them.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.exceptions as aws
from boto3.exceptions import Boto3Error
from botocore.config import Config
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from urllib3.exceptions import HTTPError

from cluster.storage.base import (
    CommitProtocol,
    ConditionUnsupported,
    Leftover,
    ObjectInfo,
    check_key,
    check_prefix,
    create_by_looking,
)
from cluster.storage.digests import FileDigests, digest_file
from cluster.storage.s3_errors import BROKEN, CONFLICT, error_code, translate
from cluster.storage.s3_signing import PAYLOAD, take_payload_digests
from cluster.storage.s3_transfer import NUM_WORKERS, download, upload
from jobs.errors import AlreadyExistsError, ObjectNotFound, StoreUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 30.0
_NUM_TRIES = 3  # ours, for what botocore does not repeat: a broken download, a conflict between creators
_TAKEN = {"PreconditionFailed", "412"}
_REFUSED = {"NotImplemented", "InvalidRequest", "InvalidArgument", "400", "501"}  # by a store that knows no condition
# RecursionError: botocore seeks the bucket's region for ever where every answer is a redirect (a proxy to https, say).
_FOREIGN = (aws.ClientError, aws.BotoCoreError, Boto3Error, HTTPError, OSError, RecursionError)

_T = TypeVar("_T")


class _Conflict(StoreUnavailable):
    """Two writers at the same key at the same moment, and the store decided for neither."""


def make_client(profile: str | None = None, *, checksums: str = "when_required") -> S3Client:
    """A client as the AWS environment says. Every body is signed with its SHA-256, also over TLS."""
    config = Config(
        signature_version="s3v4",
        request_checksum_calculation=checksums,  # type: ignore[arg-type]
        response_checksum_validation=checksums,  # type: ignore[arg-type]
        retries={"mode": "standard"},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=4 * NUM_WORKERS,
        s3={"payload_signing_enabled": True},
    )
    client = boto3.session.Session(profile_name=profile).client("s3", config=config)
    take_payload_digests(client)
    return client


class S3Store:
    """`ObjectStore` over the keys below `prefix` in `bucket`. Endpoint, region and keys come from the AWS environment.

    Number of tries per request: AWS_MAX_ATTEMPTS (botocore's standard mode, 3).
    """

    def __init__(
        self, bucket: str, prefix: str = "", protocol: CommitProtocol = "create-only", *, profile: str | None = None
    ) -> None:
        self.bucket = bucket
        self.profile = profile
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self._protocol = protocol
        with self.translated("open the store"):
            self.client: S3Client = make_client(profile)

    @property
    def protocol(self) -> CommitProtocol:
        return self._protocol

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self._prefix}".rstrip("/")

    def create(self, key: str, body: bytes) -> None:
        name = self.name(key)
        if self._protocol == "allotted":
            return create_by_looking(self, key, body, lambda: self._put(key, body))
        with self.translated(f"create {key}"):
            return _again(lambda: self._create(key, name, body))

    def _put(self, key: str, body: bytes) -> None:
        with self.translated(f"create {key}"):
            self.client.put_object(Bucket=self.bucket, Key=self.name(key), Body=body)

    def _create(self, key: str, name: str, body: bytes) -> None:
        try:
            self.client.put_object(Bucket=self.bucket, Key=name, Body=body, IfNoneMatch="*")
            return
        except aws.ClientError as error:
            if error_code(error) in CONFLICT:
                raise _Conflict(f"{self.uri}: {key} is being written by others too", hint="try again") from error
            if error_code(error) in _REFUSED:
                raise ConditionUnsupported(
                    f"{self.uri}: cannot create {key}: the store answered {error_code(error)} to If-None-Match",
                    hint="`rexctl storage doctor` chooses another protocol for it",
                ) from error
            if error_code(error) not in _TAKEN:
                raise
        # Taken: by somebody else, or by ourselves when the reply to an earlier try was lost. The bytes tell.
        try:
            there = self.get(key)
        except ObjectNotFound as error:
            raise _Conflict(f"{self.uri}: {key} was taken and is gone again", hint="try again") from error
        if there != body:
            raise AlreadyExistsError(f"{self.uri}: {key} exists with other content")

    def put_file(self, key: str, path: Path, digests: FileDigests | None = None) -> None:
        name = self.name(key)
        digests = digests or digest_file(path)
        with path.open("rb", buffering=0) as source, self.translated(f"write {key}"):
            if len(digests) == 1:
                body = os.pread(source.fileno(), digests.size_bytes + 1, 0)
                known: dict[str, Any] = {PAYLOAD: digests.sha256}
                self.client.put_object(Bucket=self.bucket, Key=name, Body=body, **known)
            else:
                upload(self.client, self.bucket, name, source.fileno(), digests)
        with self.translated(f"look at {key} after writing it"):
            kept_bytes = self.client.head_object(Bucket=self.bucket, Key=name)["ContentLength"]
        if kept_bytes != digests.size_bytes:
            raise StoreUnavailable(
                f"{self.uri}: {key} was accepted with {digests.size_bytes} bytes and is kept with {kept_bytes}",
                hint="repeat the upload; if it stays so, the store cannot be trusted",
            )

    def get(self, key: str) -> bytes:
        name = self.name(key)

        def download() -> bytes:
            # closing(), not the body's own `with`: that one hands out the raw stream, which may end short in silence
            with closing(self.client.get_object(Bucket=self.bucket, Key=name)["Body"]) as body:
                return body.read()

        with self.translated(f"read {key}"):
            return _again(download)

    def get_file(self, key: str, path: Path) -> str:
        with self.translated(f"read {key} into {path}"):
            return download(self.client, self.bucket, self.name(key), path)

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        check_prefix(prefix)
        found = []
        with self.translated(f"list {prefix!r}"):
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._prefix + prefix):
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):  # some console's folder marker, no object of ours
                        key = item["Key"].removeprefix(self._prefix)
                        found.append(ObjectInfo(key=key, size_bytes=item["Size"]))
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        name = self.name(key)
        with self.translated(f"delete {key}"):
            self.client.delete_object(Bucket=self.bucket, Key=name)

    def leftovers(self, prefix: str) -> builtins.list[Leftover]:
        check_prefix(prefix)
        found = []
        with self.translated(f"look for unfinished uploads of {prefix!r}"):
            pages = self.client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._prefix + prefix):
                for item in page.get("Uploads", []):
                    key = item["Key"].removeprefix(self._prefix)
                    found.append(Leftover(key=key, token=item["UploadId"], size_bytes=None))
        return sorted(found, key=lambda leftover: (leftover.key, leftover.token))

    def discard(self, leftover: Leftover) -> None:
        name = self.name(leftover.key)
        with self.translated(f"discard an unfinished upload of {leftover.key}"):
            try:
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=leftover.token)
            except aws.ClientError as error:
                if error_code(error) != "NoSuchUpload":
                    raise

    def name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextmanager
    def translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except _FOREIGN as error:
            raise translate(error, what, self.uri) from error


def _again(request: Callable[[], _T]) -> _T:
    """`request`, sent a few times if its download breaks off or other creators are in the way."""
    tries = Retrying(
        retry=retry_if_exception_type((*BROKEN, _Conflict)),
        stop=stop_after_attempt(_NUM_TRIES),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        reraise=True,
    )
    return tries(request)
