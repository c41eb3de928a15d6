"""The durable store: jobs, attempts, events, pending effects and what was last seen of the cluster."""

from orchestrator.store.store import AttemptRow, JobRow, PendingEffect, Stale, Store

__all__ = ["AttemptRow", "JobRow", "PendingEffect", "Stale", "Store"]
