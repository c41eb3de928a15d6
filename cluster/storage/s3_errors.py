"""What went wrong at an S3 store, in our words: one total mapping, where unknown never means missing."""

from __future__ import annotations

import errno

import botocore.exceptions as aws
from urllib3.exceptions import HTTPError

from jobs.errors import ObjectNotFound, RexError, StoreUnavailable

_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and the bucket's policy"
_ENDPOINT = "check AWS_ENDPOINT_URL and that the store is up; nothing was concluded from this"

BROKEN = (aws.ReadTimeoutError, aws.ResponseStreamingError, aws.IncompleteReadError, HTTPError)  # within an answer
CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}  # with another writer at the same moment
_ALTERED = ("BadDigest", "XAmzContentSHA256Mismatch")  # on the way: what was sent is not what arrived
_PASSING = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429", *_ALTERED}

# Code of the store's answer -> hint. A code that is not here is not known, whatever its status.
_HINTS = {
    "NoSuchBucket": "create the bucket, or correct the store's URI",
    "AccessDenied": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "ExpiredToken": "the session token has run out: renew it",
    "InvalidToken": "the session token is not valid: renew it",
    "RequestTimeTooSkewed": "set this machine's clock",
    "XAmzContentSHA256Mismatch": "the content was altered on its way: try again",
    "SlowDown": "the store asks for fewer requests: try again later",
    "ServiceUnavailable": "try again later",
    "InternalError": "try again later",
    "RequestTimeout": "try again later",
    "BadDigest": "the content was altered on its way: try again",
    "QuotaExceeded": "the bucket's quota is used up",
    "InsufficientCapacity": "the store is full",
    "XMinioStorageFull": "the store is full",
    "507": "the store is full",
    "PermanentRedirect": "the bucket lives in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket lives in another region: set AWS_REGION",
    "InvalidRequest": "the store does not take a part of this request: it may not be a full S3",
    "NotImplemented": "the store does not take a part of this request: it is not a full S3",
    "403": _CREDENTIALS,
}

# Most specific first: several of these derive from one another.
_BY_TYPE: tuple[tuple[type[Exception], str, str], ...] = (
    (aws.ProfileNotFound, "the profile named by AWS_PROFILE does not exist", "see ~/.aws/config"),
    (aws.NoCredentialsError, "no credentials were found", "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret"),
    (aws.PartialCredentialsError, "the credentials are incomplete", _CREDENTIALS),
    (aws.CredentialRetrievalError, "the credentials could not be had", _CREDENTIALS),
    (aws.TokenRetrievalError, "the login token could not be had", "log in anew (aws sso login)"),
    (aws.SSLError, "the TLS handshake failed", "check the endpoint's certificate, or set AWS_CA_BUNDLE"),
    (aws.ConnectTimeoutError, "connecting timed out", _ENDPOINT),
    (aws.ReadTimeoutError, "the answer timed out", _ENDPOINT),
    (aws.ProxyConnectionError, "the proxy could not be reached", "check HTTPS_PROXY and NO_PROXY"),
    (aws.EndpointConnectionError, "the endpoint could not be reached", _ENDPOINT),
    (aws.ConnectionClosedError, "the connection was closed before the answer", _ENDPOINT),
    (aws.ResponseStreamingError, "the connection broke within the answer", _ENDPOINT),
    (aws.IncompleteReadError, "the answer was cut short", _ENDPOINT),
    (aws.InvalidEndpointConfigurationError, "the endpoint is not valid", "check AWS_ENDPOINT_URL"),
    (aws.NoRegionError, "no region is set", "set AWS_REGION"),
    (
        RecursionError,
        "the endpoint answers every request with a redirect",
        "check AWS_ENDPOINT_URL: https instead of http?",
    ),
)


_LOCAL = {
    errno.ENOSPC: "the local disk is full: free space",
    errno.EDQUOT: "the quota on the local disk is used up",
    errno.EACCES: "check owner and mode of the local folder",
    errno.EROFS: "the local disk is mounted read-only",
}


def error_code(error: aws.ClientError) -> str:
    """The code the store gave, as NoSuchKey; the bare HTTP status where it gave none."""
    return str(error.response.get("Error", {}).get("Code", "") or _status(error))


def translate(error: Exception, what: str, uri: str) -> RexError:
    """Our error for a foreign one, met while doing `what` at `uri`.

    ObjectNotFound only for the store's own word NoSuchKey: a bare 404 may come from a proxy or a wrong endpoint, and
    NoSuchBucket says nothing of the object. All else is StoreUnavailable. Messages hold no header and no key.
    """
    cause = error.__cause__ or error.__context__
    if not isinstance(error, aws.ClientError) and isinstance(cause, aws.ClientError):
        error = cause  # boto3 wraps what a transfer met
    if isinstance(error, aws.ClientError):
        code = error_code(error)
        if code == "NoSuchKey":
            return ObjectNotFound(f"{uri}: cannot {what}: the store has no such object")
        return StoreUnavailable(
            f"{uri}: cannot {what}: the store answered {code} (HTTP {_status(error)})",
            hint=_HINTS.get(code, "not an answer that is known: try again, or look into the store's log"),
        )
    for kind, seen, hint in _BY_TYPE:
        if isinstance(error, kind):
            return StoreUnavailable(f"{uri}: cannot {what}: {seen}", hint=hint)
    if isinstance(error, OSError):
        return StoreUnavailable(
            f"{uri}: cannot {what}: {error.strerror or type(error).__name__}",
            hint=_LOCAL.get(error.errno or 0, "a local error"),
        )
    return StoreUnavailable(f"{uri}: cannot {what}: {type(error).__name__}: {error}", hint="try again")


def is_passing(error: BaseException) -> bool:
    """Is it likely to be over soon: a broken connection, a time-out, a 5xx, throttling, a part altered on its way?"""
    if isinstance(error, aws.ClientError):
        return error_code(error) in _PASSING or _status(error).startswith("5")
    return isinstance(error, (*BROKEN, aws.HTTPClientError, aws.ConnectionError)) and not isinstance(
        error, aws.SSLError
    )


def _status(error: aws.ClientError) -> str:
    return str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "unknown"))
