"""Any S3 as object store, through boto3: AWS, Ceph, MinIO, Huawei OBS.

An accepted upload proves little (Ceph takes a wrong checksum), and a condition on a multipart upload's completion may
be ignored (Ceph again). So what must be create-only is one single-part PUT with If-None-Match, and what must be right
is read back. Checksum trailers are sent only where S3 requires them: Ceph over TLS and OBS do not take them.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import boto3
import botocore.exceptions as aws
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from urllib3.exceptions import HTTPError

from cluster.storage.base import ObjectInfo, check_key, check_prefix
from cluster.storage.s3_errors import error_code, translate
from jobs.errors import AlreadyExistsError, ObjectNotFound, StoreUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_BLOCK = 1 << 20
_SINGLE_PART_BYTES = 8 << 20  # up to here one PUT with Content-MD5, which AWS, Ceph and OBS check
_PART_BYTES = 16 << 20
_NUM_UPLOADERS = 4
_NUM_TRIES = 3  # ours, for what botocore does not repeat: a broken download, a conflict between creators
_TAKEN = {"PreconditionFailed", "412"}
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}
_BROKEN = (aws.ReadTimeoutError, aws.ResponseStreamingError, aws.IncompleteReadError, HTTPError)
# RecursionError: botocore seeks the bucket's region for ever where every answer is a redirect (a proxy to https, say).
_FOREIGN = (aws.ClientError, aws.BotoCoreError, Boto3Error, HTTPError, OSError, RecursionError)

_T = TypeVar("_T")


class _Conflict(StoreUnavailable):
    """Two writers at the same key at the same moment, and the store decided for neither."""


class S3Store:
    """`ObjectStore` over the keys below `prefix` in `bucket`. Endpoint, region and keys come from the AWS environment.

    Number of tries per request: AWS_MAX_ATTEMPTS (botocore's standard mode, 3).
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        config = Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard"},
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=16,
        )
        with self._translated("open the store"):
            self._client: S3Client = boto3.session.Session().client("s3", config=config)

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def create(self, key: str, body: bytes) -> None:
        name = self._name(key)
        with self._translated(f"create {key}"):
            _again(lambda: self._create(key, name, body))

    def _create(self, key: str, name: str, body: bytes) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=name, Body=body, ContentMD5=_md5(body), IfNoneMatch="*")
            return
        except aws.ClientError as error:
            if error_code(error) in _CONFLICT:
                raise _Conflict(f"{self.uri}: {key} is being written by others too", hint="try again") from error
            if error_code(error) not in _TAKEN:
                raise
        # Taken: by somebody else, or by ourselves when the reply to an earlier try was lost. The bytes tell.
        try:
            there = self.get(key)
        except ObjectNotFound as error:
            raise _Conflict(f"{self.uri}: {key} was taken and is gone again", hint="try again") from error
        if there != body:
            raise AlreadyExistsError(f"{self.uri}: {key} exists with other content")

    def put_file(self, key: str, path: Path) -> None:
        name = self._name(key)
        with path.open("rb") as source:  # a missing source is the caller's error, not the store's
            size_bytes = os.fstat(source.fileno()).st_size
            with self._translated(f"write {key}"):
                if size_bytes <= _SINGLE_PART_BYTES:
                    body = source.read()
                    self._client.put_object(Bucket=self._bucket, Key=name, Body=body, ContentMD5=_md5(body))
                else:
                    # Unconditional, so it does no harm if the completion is sent twice. boto3 aborts what it gives up.
                    self._client.upload_fileobj(source, self._bucket, name, Config=_transfer())
        with self._translated(f"look at {key} after writing it"):
            kept_bytes = self._client.head_object(Bucket=self._bucket, Key=name)["ContentLength"]
        if kept_bytes != size_bytes:
            raise StoreUnavailable(
                f"{self.uri}: {key} was accepted with {size_bytes} bytes and is kept with {kept_bytes}",
                hint="repeat the upload; if it stays so, the store cannot be trusted",
            )

    def get(self, key: str) -> bytes:
        name = self._name(key)

        def download() -> bytes:
            # closing(), not the body's own `with`: that one hands out the raw stream, which may end short in silence
            with closing(self._client.get_object(Bucket=self._bucket, Key=name)["Body"]) as body:
                return body.read()

        with self._translated(f"read {key}"):
            return _again(download)

    def get_file(self, key: str, path: Path) -> None:
        name = self._name(key)

        def download() -> None:
            answer = self._client.get_object(Bucket=self._bucket, Key=name)
            with closing(answer["Body"]) as body, path.open("wb") as file:
                file.writelines(body.iter_chunks(_BLOCK))

        with self._translated(f"read {key} into {path}"):
            _again(download)

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        check_prefix(prefix)
        found = []
        with self._translated(f"list {prefix!r}"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):  # some console's folder marker, no object of ours
                        key = item["Key"].removeprefix(self._prefix)
                        found.append(ObjectInfo(key=key, size_bytes=item["Size"]))
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        name = self._name(key)
        with self._translated(f"delete {key}"):
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except _FOREIGN as error:
            raise translate(error, what, self.uri) from error


def _again(request: Callable[[], _T]) -> _T:
    """`request`, sent a few times if its download breaks off or other creators are in the way."""
    tries = Retrying(
        retry=retry_if_exception_type((*_BROKEN, _Conflict)),
        stop=stop_after_attempt(_NUM_TRIES),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        reraise=True,
    )
    return tries(request)


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _transfer() -> TransferConfig:
    return TransferConfig(
        multipart_threshold=_SINGLE_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=_NUM_UPLOADERS
    )
