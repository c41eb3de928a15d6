"""Which commit protocol is safe on an object store: the store doctor's word, asked for once and remembered."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

from jobs.errors import UnsafeStore
from orchestrator.store import Store

if TYPE_CHECKING:
    from cluster.storage import CommitProtocol
    from cluster.storage.doctor import Diagnosis

# What makes the same s3:// URI another store.
_AWS_NAMES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_CONFIG_FILE")


def protocol_for(uri: str, store: Store, *, profile: str | None = None) -> CommitProtocol:
    """The protocol for jobs below `uri`; the doctor is asked if the job store does not remember its answer.

    Raises:
        UnsafeStore: no protocol is safe there. Not remembered: the next submit asks anew.
        StoreUnavailable: the doctor got no answer, or may not write.
        SpecError: `uri` names no store.
    """
    known = store.flag(_flag(uri, profile))
    if known is not None:
        remembered: CommitProtocol = known["protocol"]
        return remembered
    found = diagnose_and_remember(uri, store, profile=profile)
    if found.protocol is None:
        raise UnsafeStore(
            f"no commit protocol is safe on {uri}: {found.reason}",
            hint=f"use another store; `rexctl storage doctor {uri}` shows what was seen",
        )
    return found.protocol


def diagnose_and_remember(uri: str, store: Store | None, *, profile: str | None = None) -> Diagnosis:
    """Ask the doctor, and keep its answer for the submits to come. Without a job store it is only asked."""
    from cluster.storage.doctor import diagnose

    found = diagnose(uri, profile=profile)
    if store is not None:
        kept = {"uri": uri, "protocol": found.protocol, "reason": found.reason, "at": time.time()}
        store.set_flag(_flag(uri, profile), kept if found.protocol is not None else None)
    return found


def _flag(uri: str, profile: str | None) -> str:
    """A name of at most 64 characters for this store as seen from this environment."""
    settings = [os.environ.get(name, "") for name in _AWS_NAMES] if uri.startswith("s3://") else []
    identity = "\n".join([uri.rstrip("/"), profile or "", *settings])
    return f"storage:{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
