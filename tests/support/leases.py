"""The head's register of leases, in memory."""

from __future__ import annotations

from cluster.lease import Key


class Register:
    """`cluster.lease.Register`; each request is atomic, as on the head."""

    def __init__(self) -> None:
        self.counts: dict[Key, int] = {}
        self.revoked: set[tuple[str, int]] = set()

    def renewed(self, key: Key) -> int | None:
        return self.counts.get(key)

    def renew(self, key: Key, count: int) -> None:
        self.counts[key] = count

    def revoke(self, job: str, attempt: int) -> None:
        self.revoked.add((job, attempt))

    def is_revoked(self, job: str, attempt: int) -> bool:
        return (job, attempt) in self.revoked

    def forget(self, job: str, attempt: int, nodes: int) -> None:
        for node_rank in range(nodes):
            self.counts.pop((job, attempt, node_rank), None)
