"""What the store doctor looks at on S3 besides: conditions, checksums, trailers, the clock.

None of these decides on the protocol: our commits do not lean on them. They tell what else may be built on this store,
and what a damaged request would do there.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

import botocore.exceptions as aws

from cluster.storage.check import Check
from cluster.storage.s3 import S3Store, make_client
from cluster.storage.s3_errors import error_code
from cluster.storage.s3_signing import PAYLOAD
from cluster.storage.scratch import Room

_SKEW_LIMIT_S = 300.0  # S3 refuses requests from 15 minutes on
_ONE, _TWO = b"one", b"two"
_STALE = f'"{hashlib.md5(b"never written", usedforsecurity=False).hexdigest()}"'


def s3_checks(room: Room, store: S3Store) -> list[Check]:
    with store.translated("examine the store"):
        return [
            _if_match(room, store, quoted=True),
            _if_match(room, store, quoted=False),
            _condition_on_delete(room, store),
            _condition_on_completion(room, store),
            _wrong_payload(room, store),
            _wrong_sha256(room, store),
            _wrong_md5(room, store),
            _trailers(room, store),
            _clock_skew(store),
        ]


def _told(request: Callable[[], object]) -> str:
    """What the store says to it: accepted, or its refusal. An answer that says nothing of the request is raised."""
    try:
        request()
    except aws.ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if not (400 <= status < 500 or status == 501):
            raise
        return f"refused ({error_code(error)})"
    return "accepted"


def _where(store: S3Store, key: str) -> dict[str, Any]:
    return {"Bucket": store.bucket, "Key": store.name(key)}


def _if_match(room: Room, store: S3Store, *, quoted: bool) -> Check:
    key = room.key(f"if-match-{quoted}")
    where = _where(store, key)
    room.put(key, _ONE)
    right = store.client.head_object(**where)["ETag"]
    form = '"{}"' if quoted else "{}"

    def replace(etag: str) -> str:
        etag = form.format(etag.strip('"'))
        return _told(lambda: store.client.put_object(**where, Body=_TWO, IfMatch=etag))

    stale_told, stale_kept = replace(_STALE), room.read(key) == _ONE
    room.put(key, _ONE)
    right_told, right_written = replace(right), room.read(key) == _TWO
    return Check(
        name=f"If-Match put, ETag {'quoted' if quoted else 'unquoted'}",
        holds=stale_kept and right_written,
        seen=f"stale ETag: {stale_told}, {'kept' if stale_kept else 'replaced all the same'}; "
        f"right ETag: {right_told}, {'written' if right_written else 'not written'}",
        meaning="not used: nothing is updated in place",
    )


def _condition_on_delete(room: Room, store: S3Store) -> Check:
    key = room.key("delete")
    room.put(key, _ONE)
    told = _told(lambda: store.client.delete_object(**_where(store, key), IfMatch=_STALE))
    kept = room.read(key) == _ONE
    return Check(
        name="If-Match delete",
        holds=kept,
        seen=f"stale ETag: {told}, {'kept' if kept else 'deleted all the same'}",
        meaning="not used: gc does not lean on it",
    )


def _condition_on_completion(room: Room, store: S3Store) -> Check:
    key = room.key("completion")
    where = _where(store, key)
    room.put(key, _ONE)
    upload_id = store.client.create_multipart_upload(**where)["UploadId"]
    part = store.client.upload_part(**where, UploadId=upload_id, PartNumber=1, Body=_TWO)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    told = _told(
        lambda: store.client.complete_multipart_upload(
            **where,
            UploadId=upload_id,
            MultipartUpload=parts,  # type: ignore[arg-type]
            IfNoneMatch="*",
        )
    )
    kept = room.read(key) == _ONE
    with suppress(aws.ClientError):  # completed, most likely; else `leftovers` finds it when the room is left
        store.client.abort_multipart_upload(**where, UploadId=upload_id)
    return Check(
        name="If-None-Match on multipart completion",
        holds=kept,
        seen=f"on a taken key: {told}, {'kept' if kept else 'replaced all the same'}",
        meaning="not used: what must be new is one small object",
    )


def _wrong_payload(room: Room, store: S3Store) -> Check:
    key = room.key("payload")
    wrong: dict[str, Any] = {PAYLOAD: hashlib.sha256(b"other").hexdigest()}
    told = _told(lambda: store.client.put_object(**_where(store, key), Body=_ONE, **wrong))
    meaning = "if not, a damaged upload shows only when it is verified"
    return _rejection(room, key, "wrong payload SHA-256 refused", told, meaning)


def _wrong_sha256(room: Room, store: S3Store) -> Check:
    key = room.key("sha256")
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    told = _told(lambda: store.client.put_object(**_where(store, key), Body=_ONE, ChecksumSHA256=wrong))
    return _rejection(room, key, "wrong checksum SHA-256 refused", told, "not used: the signed payload's is")


def _wrong_md5(room: Room, store: S3Store) -> Check:
    key = room.key("md5")
    wrong = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
    told = _told(lambda: store.client.put_object(**_where(store, key), Body=_ONE, ContentMD5=wrong))
    return _rejection(room, key, "wrong MD5 refused", told, "not used: the signed payload's SHA-256 is")


def _rejection(room: Room, key: str, name: str, told: str, meaning: str) -> Check:
    kept = room.read(key) is not None
    return Check(name=name, holds=not kept, seen=f"{told}, {'kept' if kept else 'not kept'}", meaning=meaning)


def _trailers(room: Room, store: S3Store) -> Check:
    """boto3's default integrity: a store that does not know it refuses, or keeps the chunks' frames as content."""
    key = room.key("trailers")
    client = make_client(store.profile, checksums="when_supported")
    told = _told(lambda: client.put_object(**_where(store, key), Body=_ONE))
    there = room.read(key)
    way = "trailer" if client.meta.endpoint_url.startswith("https:") else "header, since this is not TLS"
    seen = {None: "nothing kept", _ONE: "kept as it was"}.get(there, "kept with other bytes")
    return Check(
        name="checksum trailers",
        holds=there == _ONE,
        seen=f"as {way}: {told}, {seen}",
        meaning="not used: other tools need AWS_REQUEST_CHECKSUM_CALCULATION=when_required without them",
    )


def _clock_skew(store: S3Store) -> Check:
    before = time.time()
    answer = store.client.list_objects_v2(Bucket=store.bucket, MaxKeys=1)
    ours = (before + time.time()) / 2
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    meaning = "from 15 minutes on every request is refused; our protocols consult no clock"
    if date is None:
        return Check(name="clock skew", holds=None, seen="the store tells no time", meaning=meaning)
    skew_s = parsedate_to_datetime(date).timestamp() + 0.5 - ours  # the header has whole seconds
    return Check(
        name="clock skew", holds=abs(skew_s) < _SKEW_LIMIT_S, seen=f"the store is {skew_s:+.0f} s off", meaning=meaning
    )
