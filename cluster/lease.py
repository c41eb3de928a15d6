"""The lease of one node of one attempt: how silence becomes proof, without a clock that two hosts share.

The agent renews: it takes the time, counts its key up in the Ray head's key-value store, looks whether the attempt was
revoked, and only then lets its supervisor live on until `taken + lease`. The supervisor ends its tree when that passes.
The control plane never renews. It watches whether the key moves. Where it has not moved for a whole lease, it revokes
and looks once more: if the key is still the same, whoever moves it later reads the revocation after that and gets no
further time, so all that was ever granted has run out. (Two flags, each written before the other one is read; the head
is one server, so one of both sides sees the other.)

The key-value store is Ray's `experimental.internal_kv`: the only place in the head that can be written without a
process of ours there. An actor in its place would need a restart of its own, and a memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

LEASE_S = 60.0
RENEWALS_PER_LEASE = 10
_LONGEST_S = 2.0  # between two renewals: so soon may a host be missed, and its provider asked, whatever the lease
_OVERDUE = 1.5  # times the time between two renewals
MARGIN_S = 3.0  # from the end of a lease to the end of the last process: a tick of the supervisor, SIGKILL, a sweep

Key = tuple[str, int, int]  # job, attempt, node rank


class Register(Protocol):
    """The head's register of leases."""

    def renewed(self, key: Key) -> int | None:
        """How often the lease was renewed; None if never."""
        ...

    def renew(self, key: Key, count: int) -> None: ...

    def revoke(self, job: str, attempt: int) -> None: ...

    def is_revoked(self, job: str, attempt: int) -> bool: ...

    def forget(self, job: str, attempt: int, nodes: int) -> None: ...


def boottime() -> float:
    """Seconds since this machine's boot, sleep included: what all processes of one host agree on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def renewal_every_s(lease_s: float) -> float:
    """Seconds between two renewals."""
    return min(lease_s / RENEWALS_PER_LEASE, _LONGEST_S)


class Lease:
    """The agent's side."""

    def __init__(self, register: Register, key: Key, lease_s: float) -> None:
        self.register, self.key, self.lease_s = register, key, lease_s
        self._count = 0

    @property
    def every_s(self) -> float:
        return renewal_every_s(self.lease_s)

    def renew(self, clock: Callable[[], float] = boottime) -> float | None:
        """Until when this node may live (by `boottime`); None if the attempt was revoked. Raises what the head raises,
        and may block for as long as it does not answer: the time granted counts from before."""
        taken = clock()
        self._count += 1
        self.register.renew(self.key, self._count)
        if self.register.is_revoked(self.key[0], self.key[1]):
            return None
        return taken + self.lease_s


class Watch:
    """The control plane's side: which silent nodes' leases are over. Its memory may be lost; then it waits anew."""

    def __init__(self, register: Register, clock: Callable[[], float] = time.monotonic) -> None:
        self.register, self._clock = register, clock
        self._seen: dict[Key, tuple[int | None, float]] = {}  # the count, and when it was first known

    def is_over(self, key: Key, lease_s: float) -> bool:
        """Look at the lease of a silent node. True once every process that lived under it has ended."""
        return self._silent_s(key) > lease_s + MARGIN_S and self.revoke_if_silent(key)

    def overdue_since(self, key: Key, lease_s: float) -> float | None:
        """Look at the lease of a silent node. Once it has missed a renewal: since when nothing came (by our clock)."""
        if self._silent_s(key) <= _OVERDUE * renewal_every_s(lease_s):
            return None
        return self._seen[key][1]

    def revoke_if_silent(self, key: Key) -> bool:
        """Have nobody of that attempt get more time; False if this node has got some since it was looked at last."""
        self.register.revoke(key[0], key[1])
        return key in self._seen and self.register.renewed(key) == self._seen[key][0]

    def _silent_s(self, key: Key) -> float:
        """For how many seconds the newest renewal has been the same as far as we have seen.

        This process may be stopped while it asks, for longer than a lease: an unchanged count dates from the question,
        a new one from the answer.
        """
        asked_at = self._clock()
        count = self.register.renewed(key)
        if key not in self._seen or self._seen[key][0] != count:
            self._seen[key] = (count, self._clock())
            return 0.0
        return asked_at - self._seen[key][1]

    def revoke(self, job: str, attempt: int) -> None:
        """No node of that attempt gets more time, whatever it still says."""
        self.register.revoke(job, attempt)

    def heard(self, key: Key) -> None:
        """The node has spoken: its silence, if there was one, is over."""
        self._seen.pop(key, None)

    def forget(self, job: str, attempt: int, nodes: int) -> None:
        """The attempt has ended."""
        for node_rank in range(nodes):
            self._seen.pop((job, attempt, node_rank), None)
