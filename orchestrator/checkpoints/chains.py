"""Where a job's checkpoints lie: its chain, named by the job or by its store's URI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.storage import ObjectStore, open_store
from cluster.storage.chain.reader import CheckpointReader
from cluster.storage.chain.survey import newest_attempt
from jobs.errors import ConflictError, NotFoundError, SpecError, StoreUnavailable
from jobs.manifest import PREFIX
from orchestrator.store import JobRow, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A job's checkpoints. `row` is the job's, None if the chain was named by its URI; `job` may be "" then."""

    job: str
    store: ObjectStore
    row: JobRow | None
    checkpoints: CheckpointReader

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"job {self.job}" if self.job else self.store.uri

    @property
    def ended(self) -> int:
        """Attempts up to this number are over for good, as the job store knows. Of a bare URI nothing is known: 0.

        A job leaves its active states only once every node has certified that the attempt's processes are gone.
        """
        if self.row is None:
            return 0
        return self.row.job.attempt - 1 if self.row.state.active else self.row.job.attempt

    def alone(self) -> bool:
        """Whether a collection has to be alone there, and is: the store cannot fence attempts, and none runs.

        Raises:
            ConflictError: it has to be, and an attempt may run.
        """
        if self.store.protocol != "allotted":
            return False
        if self.row is None:
            raise ConflictError(
                f"{self.store.uri} has no conditional put, and whether an attempt runs there is not known",
                hint="name the job instead of the URI",
            )
        if self.row.state.active:
            raise ConflictError(
                f"{self.name} is {self.row.state.value}, and its store has no conditional put",
                hint="collect when it does not run",
            )
        return True


def find_chain(name: str, jobs: Callable[[], Store]) -> Chain:
    """The chain of that job, or in the store of that URI; `jobs` opens the job store, if that is needed.

    Raises:
        NotFoundError: there is no such job, or no chain under the URI.
        SpecError: neither a job's id nor a store's URI.
        StoreUnavailable: no answer, or not that store's: it is empty, and the job has committed to it.
    """
    if "://" in name:
        return _chain_at(open_store(name))
    if "/" in name:
        raise SpecError(
            f"{name!r} is neither a job's id nor a store's URI",
            hint=f"a folder is said as file://{Path(name).absolute()}",
        )
    row = jobs().get(name)
    store = open_store(row.store_uri)
    if row.checkpoint is not None and not newest_attempt(store) and not store.list(PREFIX):
        raise StoreUnavailable(  # an unmounted share is an empty folder, another endpoint has an empty bucket
            f"{store.uri} is empty, and job {row.id} has committed {row.checkpoint['manifest']} there",
            hint="is its disk or share mounted, is AWS_ENDPOINT_URL the right one? Nothing was concluded from this",
        )
    return Chain(job=row.id, store=store, row=row, checkpoints=CheckpointReader(store, row.id))


def _chain_at(store: ObjectStore) -> Chain:
    """The chain in `store`, of the job that its manifests name."""
    nobody = CheckpointReader(store, "")
    listed = nobody.manifests()
    if not listed and not nobody.attempts():
        raise NotFoundError(
            f"there is no chain of checkpoints in {store.uri}",
            hint="each job has a store of its own: `rexctl status JOB` prints its URI",
        )
    job = next((one.manifest.job for one in listed if one.manifest is not None), "")
    return Chain(job=job, store=store, row=None, checkpoints=CheckpointReader(store, job))
