"""Requests signed with a SHA-256 that is known already: what arrives must be what was hashed, whatever is sent.

botocore's signer hashes a body when it is sent. Ours takes the digest that the caller passes with the request
(`client.upload_part(..., PayloadSHA256=...)`), and leaves all others to botocore. What it builds on is
botocore's own: events, the request's context, and its table of signers (which no documentation promises).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PAYLOAD = "PayloadSHA256"  # the name of the argument: 64 hexadecimal digits
_CONTEXT = "rex_payload_sha256"
_SIGNER = "rex-s3v4"


class _KnownPayload(S3SigV4Auth):
    """Signature version 4 of S3, of a payload whose digest is in the request's context."""

    def payload(self, request: Any) -> str:
        known: str | None = request.context.get(_CONTEXT)
        return known or super().payload(request)


def take_payload_digests(client: S3Client) -> None:
    """Let `upload_part` and `put_object` of this client take the argument `PAYLOAD`."""
    AUTH_TYPE_MAPS[_SIGNER] = _KnownPayload
    for operation in ("UploadPart", "PutObject"):
        client.meta.events.register(f"provide-client-params.s3.{operation}", _to_context)  # type: ignore[arg-type]
        client.meta.events.register(f"choose-signer.s3.{operation}", _choose_signer)  # type: ignore[arg-type]


def _to_context(params: dict[str, Any], context: dict[str, Any], **_: object) -> dict[str, Any]:
    if PAYLOAD in params:
        context[_CONTEXT] = params[PAYLOAD]
    return {name: value for name, value in params.items() if name != PAYLOAD}


def _choose_signer(context: dict[str, Any], **_: object) -> str | None:
    return _SIGNER if _CONTEXT in context else None
