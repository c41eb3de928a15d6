"""Comparing runs by their resume certificates: where two of them part, or whether one's own chain is whole."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs.certificate import FILE, START, Difference, Entry, first_difference, from_lines
from jobs.errors import CorruptCheckpoint, NotFoundError
from orchestrator.store import JobRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The certificate of a job's newest checkpoint, step by step from the first that is still there."""

    job_id: str
    manifest: str
    step: int
    digest: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`common` is the number of steps that both certificates have; `difference` the first that parts them, if any."""

    left: Certificate
    right: Certificate
    common: int
    difference: Difference | None


def certificate_of(row: JobRow) -> Certificate:
    """Read and check it along the chain. NotFoundError without a checkpoint or certificate; CorruptCheckpoint."""
    store = CheckpointStore(open_store(row.store_uri), row.id)
    newest = store.newest()
    if newest is None:
        raise NotFoundError(f"job {row.id} has no checkpoint", hint="it has to commit one first")
    if not newest.certificate:
        raise NotFoundError(f"job {row.id} keeps no certificate", hint="rexnet.train does; other programs need not")
    entries: list[Entry] = []
    for manifest in reversed(store.history(newest)):
        found = from_lines(store.read(manifest, FILE), f"{manifest.name}'s {FILE}")
        if entries and found and found[0].step != entries[-1].step + 1:
            raise CorruptCheckpoint(f"{manifest.name} goes on at step {found[0].step}, after {entries[-1].step}")
        entries += found
        last = entries[-1].digest if entries else START
        if last != manifest.certificate:
            raise CorruptCheckpoint(f"{manifest.name} says {manifest.certificate[:12]}, its steps end in {last[:12]}")
    return Certificate(
        job_id=row.id, manifest=newest.name, step=newest.step, digest=newest.certificate, entries=tuple(entries)
    )


def compare(left: Certificate, right: Certificate) -> Comparison:
    """NotFoundError if they have no step in common."""
    common = {entry.step for entry in left.entries} & {entry.step for entry in right.entries}
    if not common:
        raise NotFoundError(f"{left.job_id} and {right.job_id} have no step in common")
    return Comparison(
        left=left, right=right, common=len(common), difference=first_difference(left.entries, right.entries)
    )
