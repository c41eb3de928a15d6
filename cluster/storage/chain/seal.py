"""A seal on small JSON objects: a flipped bit in a manifest or pin is seen, even where it still parses.

The sealed body is the object's canonical JSON plus one key, `sha256`: the digest of that canonical JSON without it.
For a manifest this is `Manifest.sha256()`. Every version of every record is to be sealed this way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jobs.errors import CorruptCheckpoint

_SEAL = "sha256"


class UnsealedRecord(CorruptCheckpoint):
    """JSON that carries no seal at all; `version` is what it says of itself."""

    def __init__(self, name: str, version: object) -> None:
        super().__init__(f"{name} carries no sha256 of itself")
        self.version = version


def canonical(values: Mapping[str, Any]) -> bytes:
    """The one way our records are written: sorted keys, indented, a newline at the end."""
    return (json.dumps(values, sort_keys=True, indent=1) + "\n").encode()


def seal(values: Mapping[str, Any]) -> bytes:
    """`values` as sealed bytes."""
    return canonical({**values, _SEAL: hashlib.sha256(canonical(values)).hexdigest()})


def unseal(body: bytes, name: str) -> dict[str, Any]:
    """What was sealed. CorruptCheckpoint if `body` is not, byte for byte, what `seal` wrote."""
    try:
        values: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptCheckpoint(f"{name} is not a JSON object")
    if _SEAL not in values:
        raise UnsealedRecord(name, values.get("version"))
    content = {key: value for key, value in values.items() if key != _SEAL}
    if seal(content) != body:
        raise CorruptCheckpoint(f"{name} is altered: its content does not have the sha256 that it states")
    return content
