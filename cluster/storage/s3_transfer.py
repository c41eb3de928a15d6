"""Large objects over S3: in parts, in parallel, resumed after a break.

Why not boto3's transfer manager: each part is to be signed with the SHA-256 that was computed when the file was hashed,
a part that is through is not to be sent again whatever happens to the others, and all ranges of a download are to be of
one object. Memory: a block for each of `NUM_WORKERS` threads; a part is read from the file while it is sent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import botocore.exceptions as aws
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from cluster.storage.digests import PART_BYTES, FileDigests
from cluster.storage.s3_errors import CONFLICT, error_code, is_passing
from cluster.storage.s3_signing import PAYLOAD
from jobs.errors import StoreUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

NUM_WORKERS = 4
_NUM_TRIES = 6  # of one part, each with botocore's own tries inside
_NUM_ROUNDS = 3  # of the whole transfer, where the store has forgotten the upload or the object was replaced
_BLOCK = 256 << 10  # of 1 MiB it took over three times the CPU time; inferred: fresh memory each time
_START_AGAIN = {"NoSuchUpload", "InvalidPart", *CONFLICT}
_MD5 = re.compile(r"[0-9a-f]{32}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)", re.ASCII)

_T = TypeVar("_T")


class _Forgotten(Exception):
    """The store no longer knows the upload, or a part of it."""


class _Replaced(Exception):
    """The object is no longer the one whose first bytes were read."""


class _Object(NamedTuple):
    etag: str
    size_bytes: int


class _Part:
    """The bytes of a file from `start` to `end`, as a body that botocore sends: read when they are sent.

    `read` gives a block whatever is asked for: with the 16 KiB that http.client asks for, 1 GiB takes 1.5 instead of
    0.9 s of the processor.
    """

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self._descriptor, self._start, self._end = descriptor, start, end
        self._at = start

    def __len__(self) -> int:
        return self._end - self._start

    def read(self, _: int = -1) -> bytes:
        block = os.pread(self._descriptor, min(_BLOCK, self._end - self._at), self._at)
        if not block and self._at < self._end:  # the line is broken off, rather than left waiting for the rest
            raise OSError(errno.EIO, "the file was cut short while it was sent")
        self._at += len(block)
        return block

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence] + offset
        return self.tell()

    def tell(self) -> int:
        return self._at - self._start


def again(request: Callable[[], _T]) -> _T:
    """`request`, sent a few times with backoff and jitter while what it meets is likely to pass."""
    tries = Retrying(
        retry=retry_if_exception(is_passing),
        stop=stop_after_attempt(_NUM_TRIES),
        wait=wait_random_exponential(multiplier=0.25, max=10),
        reraise=True,
    )
    return tries(request)


def upload(client: S3Client, bucket: str, name: str, descriptor: int, digests: FileDigests) -> None:
    """Write the file as one object of several parts, without condition. On any error the upload is aborted."""
    where: dict[str, Any] = {"Bucket": bucket, "Key": name}
    for turn in range(1, _NUM_ROUNDS + 1):
        upload_id = client.create_multipart_upload(**where)["UploadId"]
        try:
            parts = _send_parts(client, {**where, "UploadId": upload_id}, descriptor, digests)
            return _complete(client, where, upload_id, parts)
        except BaseException as error:
            # The first error is the one to tell; an upload that cannot be aborted now is found by `leftovers`.
            with suppress(aws.ClientError, aws.BotoCoreError):
                client.abort_multipart_upload(**where, UploadId=upload_id)
            if not isinstance(error, _Forgotten):
                raise
            if turn == _NUM_ROUNDS:
                raise error.__cause__ or error from None
    return None


def _send_parts(
    client: S3Client, where: dict[str, Any], descriptor: int, digests: FileDigests
) -> list[CompletedPartTypeDef]:
    def send(index: int) -> CompletedPartTypeDef:
        part: dict[str, Any] = {**where, "PartNumber": index + 1, PAYLOAD: digests.part_sha256[index]}

        def request() -> str:
            if os.fstat(descriptor).st_size < digests.size_bytes:
                raise StoreUnavailable(
                    f"part {index + 1} of {where['Key']}: the file is shorter than it was when it was hashed",
                    hint="the file was altered while it was written",
                )
            part["Body"] = _Part(descriptor, *digests.span(index))
            return client.upload_part(**part)["ETag"]

        try:
            etag = again(request)
        except aws.ClientError as error:
            if error_code(error) in _START_AGAIN:
                raise _Forgotten(where["Key"]) from error
            raise
        return {"PartNumber": index + 1, "ETag": etag}

    return _in_parallel([lambda index=index: send(index) for index in range(len(digests))])  # type: ignore[misc]


def _complete(client: S3Client, where: dict[str, Any], upload_id: str, parts: list[CompletedPartTypeDef]) -> None:
    upload: Any = {"Parts": parts}
    try:
        again(lambda: client.complete_multipart_upload(**where, UploadId=upload_id, MultipartUpload=upload))
    except aws.ClientError as error:
        code = error_code(error)
        # An earlier try may have gone through, and only its reply was lost.
        if code == "NoSuchUpload" and (there := _etag(client, where)) is not None and there == _etag_of(parts):
            return
        if code in _START_AGAIN:
            raise _Forgotten(where["Key"]) from error
        raise


def _etag(client: S3Client, where: dict[str, Any]) -> str | None:
    """The ETag of the object that is there, None if none is."""
    try:
        return again(lambda: client.head_object(**where))["ETag"]
    except aws.ClientError as error:
        if error_code(error) in ("404", "NoSuchKey"):
            return None
        raise


def _etag_of(parts: list[CompletedPartTypeDef]) -> str | None:
    """The ETag that AWS, Ceph and MinIO give to an object of these parts; where theirs are no MD5, none can be told."""
    etags = [part["ETag"].strip('"') for part in parts]
    if not all(_MD5.fullmatch(etag) for etag in etags):
        return None
    joined = b"".join(bytes.fromhex(etag) for etag in etags)
    return f'"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"'


def download(client: S3Client, bucket: str, name: str, path: Path) -> str:
    """Write the object to `path`; the SHA-256 of what was written. All bytes are of one object, by its ETag."""
    for _ in range(_NUM_ROUNDS):
        with suppress(_Replaced), path.open("w+b", buffering=0) as file:
            return _download(client, {"Bucket": bucket, "Key": name}, file.fileno())
    raise StoreUnavailable(f"{name} was replaced again and again while it was read", hint="try again later")


def _download(client: S3Client, where: dict[str, Any], descriptor: int) -> str:
    digest = hashlib.sha256()
    seen, at = _fetch(client, where, descriptor, 0, None)
    starts = range(at, seen.size_bytes, PART_BYTES)
    with ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="download") as pool:
        # The later parts are on their way while this thread hashes what is there, out of the page cache.
        futures = [pool.submit(_fetch, client, where, descriptor, start, seen) for start in starts]
        try:
            _feed(digest, descriptor, 0, at)
            for start, future in zip(starts, futures, strict=True):
                _feed(digest, descriptor, start, future.result()[1])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return digest.hexdigest()


def _fetch(
    client: S3Client, where: dict[str, Any], descriptor: int, start: int, expected: _Object | None
) -> tuple[_Object, int]:
    """Read the part that begins at `start` into the file: what object it is of, and the first byte after it.

    After a break it goes on where it stopped. The ETag is compared here rather than sent as If-Match: that is a
    condition which some stores ignore, and others know only without quotes.
    """
    at, ranged = start, True

    def request() -> _Object:
        nonlocal at, ranged, expected
        try:
            if ranged:
                answer = client.get_object(**where, Range=f"bytes={at}-{start + PART_BYTES - 1}")
            else:
                answer = client.get_object(**where)
        except aws.ClientError as error:
            if error_code(error) not in ("InvalidRange", "416"):
                raise
            if expected is not None:
                raise _Replaced from error
            ranged = False  # an empty object has no range at all
            answer = client.get_object(**where)
        with closing(answer["Body"]) as body:
            covered = _RANGE.fullmatch(answer.get("ContentRange", ""))
            if covered is None:
                ranged, at, size_bytes = False, 0, answer["ContentLength"]  # the store sends the whole
            else:
                size_bytes = int(covered[2])
            seen = _Object(answer.get("ETag", ""), size_bytes)
            if expected not in (None, seen) or (covered is not None and int(covered[1]) != at):
                raise _Replaced
            expected = seen
            for block in body.iter_chunks(_BLOCK):
                _write(descriptor, block, at)
                at += len(block)
        return seen

    seen = again(request)
    wanted = min(start + PART_BYTES, seen.size_bytes) if ranged else seen.size_bytes
    if at != wanted:
        raise StoreUnavailable(f"{where['Key']}: the store sent {at} bytes of {wanted}", hint="try again")
    return seen, at


def _write(descriptor: int, block: bytes, at: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(descriptor, view, at)
        at, view = at + written, view[written:]


def _feed(digest: hashlib._Hash, descriptor: int, start: int, end: int) -> None:
    buffer = memoryview(bytearray(_BLOCK))
    while start < end:
        num_bytes = os.preadv(descriptor, [buffer[: end - start]], start)
        if not num_bytes:
            raise StoreUnavailable("the file that is being downloaded was cut short", hint="who else writes it?")
        digest.update(buffer[:num_bytes])
        start += num_bytes


def _in_parallel(tasks: list[Callable[[], _T]]) -> list[_T]:
    """The results, in order; the first failure ends what has not begun, and is raised once nothing runs any more."""
    with ThreadPoolExecutor(min(NUM_WORKERS, len(tasks)), thread_name_prefix="upload") as pool:
        futures: list[Future[_T]] = [pool.submit(task) for task in tasks]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [error for future in done if (error := future.exception()) is not None]
            if failed:
                raise failed[0]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]
