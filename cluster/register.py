"""The register of leases in the Ray head's key-value store, and what Ray's failures mean to us."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from ray.exceptions import RayError
from ray.experimental import internal_kv

from cluster.lease import Key
from jobs.errors import ClusterUnreachable

_NAMESPACE = "rexctl-leases"
_P = ParamSpec("_P")
_R = TypeVar("_R")


def translated(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Ray's own failures are one thing to us: not knowing."""

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except (RayError, ConnectionError, TimeoutError) as error:
            raise ClusterUnreachable(f"Ray did not answer {function.__name__}: {error}") from error

    return wrapper


class HeadRegister:
    """`cluster.lease.Register` of the Ray cluster that this process is connected to."""

    @translated
    def renewed(self, key: Key) -> int | None:
        value = internal_kv._internal_kv_get(_lease(key), namespace=_NAMESPACE)
        return None if value is None else int(value)

    @translated
    def renew(self, key: Key, count: int) -> None:
        internal_kv._internal_kv_put(_lease(key), str(count), overwrite=True, namespace=_NAMESPACE)

    @translated
    def revoke(self, job: str, attempt: int) -> None:
        internal_kv._internal_kv_put(_revoked(job, attempt), "1", overwrite=True, namespace=_NAMESPACE)

    @translated
    def is_revoked(self, job: str, attempt: int) -> bool:
        return internal_kv._internal_kv_get(_revoked(job, attempt), namespace=_NAMESPACE) is not None

    @translated
    def forget(self, job: str, attempt: int, nodes: int) -> None:
        """Drop the attempt's leases. A revocation stays: an agent that was cut off may come back at any time."""
        for node_rank in range(nodes):
            internal_kv._internal_kv_del(_lease((job, attempt, node_rank)), namespace=_NAMESPACE)


def _lease(key: Key) -> str:
    job, attempt, node_rank = key
    return f"lease/{job}/{attempt}/{node_rank}"


def _revoked(job: str, attempt: int) -> str:
    return f"revoked/{job}/{attempt}"
