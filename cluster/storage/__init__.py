"""Object storage: where checkpoints live, on a directory or any S3.

Belongs here: the `ObjectStore` protocol with its implementations, and `CheckpointStore` (commit, verify, resume) on
top of it. Does not belong here: Ray, MindSpore, and any decision about jobs. This is the one package of ours that
imports boto3, and only when an s3:// URI is opened; rexnet may import it, since it brings no Ray along.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from cluster.storage.base import PROTOCOLS, CommitProtocol, Leftover, ObjectInfo, ObjectStore
from cluster.storage.digests import FileDigests, digest_file
from jobs.errors import SpecError

__all__ = ["CommitProtocol", "FileDigests", "Leftover", "ObjectInfo", "ObjectStore", "digest_file", "open_store"]

_VALID = "valid are file:///absolute/folder and s3://bucket/prefix (endpoint, region and keys by the AWS environment)"


def open_store(uri: str, protocol: str = "create-only", *, profile: str | None = None) -> ObjectStore:
    """The store that `uri` names. Nothing is read or written yet.

    `file:///abs/dir` is a directory (made by the first write); `s3://bucket/prefix` is any S3, reached as the usual
    environment says (AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, ...); `profile` comes before
    AWS_PROFILE. `protocol` is the one that the store doctor has chosen for this store.

    Raises:
        SpecError: not such a URI, or not a protocol.
        StoreUnavailable: the AWS environment names a profile that does not exist.
    """
    chosen = _protocol(protocol)
    parts = urlsplit(uri)
    if parts.query or parts.fragment or parts.username is not None:
        raise SpecError(f"store URI {_public(uri)!r} carries a query, a fragment or a user name", hint=_VALID)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or not parts.path.strip("/"):
            raise SpecError(f"store URI {uri!r} names no absolute folder", hint=_VALID)
        if ".." in parts.path.split("/"):
            raise SpecError(f"store URI {uri!r} contains '..'", hint=_VALID)
        from cluster.storage.directory import DirectoryStore

        return DirectoryStore(unquote(parts.path), chosen)
    if parts.scheme == "s3":
        if not parts.netloc or ":" in parts.netloc:
            raise SpecError(f"store URI {uri!r} names no bucket", hint=_VALID)
        from cluster.storage.s3 import S3Store

        return S3Store(parts.netloc, unquote(parts.path).strip("/"), chosen, profile=profile)
    raise SpecError(f"store URI {uri!r} has no scheme that is known", hint=_VALID)


def _protocol(given: str) -> CommitProtocol:
    for known in PROTOCOLS:
        if known == given:
            return known
    raise SpecError(f"{given!r} is no commit protocol", hint=f"valid are {' and '.join(PROTOCOLS)}")


def _public(uri: str) -> str:
    """The URI without what may be a secret in it."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
