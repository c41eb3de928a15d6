"""Reading an attempt's logs wherever they are: in a folder that this machine sees, in the object store, on the node.

Sources are tried in this order for each node. All of them know the same offsets, so reading goes on in one where
another has ended: nothing is printed twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cluster.logs.attempt_folders import shipping_result
from cluster.logs.files import Chunk, FolderLogs
from jobs.errors import IntegrityError, NotFoundError, ObjectNotFound, RetryableError
from orchestrator.logs.lines import LineReader, Wanted
from orchestrator.store import AttemptRow, JobRow, Store

if TYPE_CHECKING:
    from cluster.logs.remote import RemoteNodes

_POLL_S = 0.3
_AGAIN_S = 3.0  # between two tries to reach a node that does not answer
_PATIENCE_S = 10.0  # for a node of an ended attempt that does not answer, before the next attempt's lines come
_CHUNK_BYTES = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a log, or (`dropped_bytes`) how much is gone where the log has reached its bound."""

    attempt: int
    rank: int | None  # -1 for msrun's scheduler, None for what runs the node
    node: int
    host: str
    file: str
    source: str  # folder, store, node
    line: str
    dropped_bytes: int = 0


class Logs(Protocol):
    """What all sources have: `FolderLogs`, `ShippedLogs` and `RemoteLogs` of `cluster.logs`."""

    def read(self, offsets: Mapping[str, int], max_bytes: int) -> dict[str, Chunk]: ...

    def tails(self, names: list[str], num_lines: int) -> dict[str, int]: ...


class NodeLogs:
    """The wanted logs of one node of one attempt: where each has been read to, and from where it is read."""

    def __init__(
        self, row: JobRow, attempt: AttemptRow, node: int, names: Mapping[str, int | None], view: View
    ) -> None:
        assert attempt.plan is not None
        self._row, self._attempt, self._node, self._ranks, self._view = row, attempt.number, node, names, view
        self._granted = attempt.nodes[node]
        root = Path(attempt.plan["work_root"])
        self._directory = root / row.id / f"attempt-{attempt.number}" / f"node-{node}"
        self._readers = {name: LineReader() for name in names}
        self._source: tuple[str, Logs] | None = None
        self._read_from = ""  # the last source that gave anything
        self._tail = view.wanted.tail if attempt.number == view.first else None
        self._not_before = 0.0
        self._silent_since: float | None = None
        self._given_up = False
        self.found: set[str] = set()  # logs that are there

    def new_lines(self, *, ready: bool, ended: bool) -> Iterator[Line]:
        """What has been written since the last call, as far as somebody can tell; says once when nobody can.

        `ready`: the attempt's ranks have been started, so there should be logs.
        """
        if self._given_up or time.monotonic() < self._not_before:
            return
        problems: dict[str, Exception] = {}
        for name, open_source in self._candidates(ended):
            try:
                if self._source is None or self._source[0] != name:
                    self._source = (name, open_source())
                    self._view.explain(f"{self._what()}: read from {self._where(name)}")
                yield from self._drain(*self._source, together=self._view.follow and not ended)
            except (RetryableError, NotFoundError, ObjectNotFound, IntegrityError, OSError) as error:
                self._source = None if self._source is not None and self._source[0] == name else self._source
                problems[name] = error
                continue
            self._silent_since = None
            return
        if not ready and all(isinstance(problem, NotFoundError) for problem in problems.values()):
            return  # nothing was written yet, or it never came to that
        self._nobody(problems, ended)

    def waits(self, *, ended: bool) -> bool:
        """Is somebody still to be asked again before this node's logs are given up?"""
        if not ended or self._given_up or self._silent_since is None:
            return False
        return time.monotonic() - self._silent_since < _PATIENCE_S

    def finish(self) -> Iterator[Line]:
        """The attempt has ended: what its ranks wrote last without ending the line."""
        for name, reader in self._readers.items():
            for text in reader.finish():
                yield self._line(name, self._read_from, text)

    def _candidates(self, ended: bool) -> Iterator[tuple[str, Callable[[], Logs]]]:
        """A folder here is always the nearest; then the present source: no log is opened anew with each look."""
        candidates: dict[str, Callable[[], Logs]] = {"folder": self._folder}
        if ended:
            candidates["store"] = self._shipped
        if self._view.remote is not None:
            candidates["node"] = self._remote
        yield "folder", candidates.pop("folder")
        if self._source is not None and self._source[0] in candidates:
            yield self._source[0], candidates.pop(self._source[0])
        yield from candidates.items()

    def _folder(self) -> Logs:
        if not self._directory.is_dir():
            raise NotFoundError(f"{self._directory} is not on this machine")
        self._say_unshipped(shipping_result(self._directory))
        return FolderLogs(self._directory)

    def _shipped(self) -> Logs:
        from cluster.logs.shipped import ShippedLogs
        from cluster.storage import open_store

        store = open_store(
            self._row.store_uri, self._row.commit_protocol, profile=self._row.spec.credentials.aws_profile
        )
        try:
            return ShippedLogs(store, self._attempt, self._node)
        except ObjectNotFound as error:
            raise NotFoundError(f"they were not shipped to {store.uri}") from error

    def _remote(self) -> Logs:
        assert self._view.remote is not None
        logs = self._view.remote().open(self._granted, str(self._directory))
        self._say_unshipped(logs.shipping)
        return logs

    def _say_unshipped(self, result: Mapping[str, Any] | None) -> None:
        if result is not None and result["error"] is not None:
            tried = f"was given up after {result['tries']} tries: {result['error']}"
            self._view.tell(f"{self._what()}: its logs lie on that host only; shipping them {tried}")

    def _drain(self, source: str, logs: Logs, *, together: bool) -> Iterator[Line]:
        """Read on to the present end of each log: of all in turns while they grow, else of one after the other."""
        if self._tail is not None:
            offsets = logs.tails(list(self._readers), self._tail)
            self._readers.update({name: LineReader(offset) for name, offset in offsets.items()})
            self._tail = None
        for names in [list(self._readers)] if together else [[name] for name in self._readers]:
            unread = names
            while unread:
                chunks = logs.read({name: self._readers[name].offset for name in unread}, _CHUNK_BYTES)
                self.found |= chunks.keys()
                self._read_from = source
                for name, chunk in chunks.items():
                    for piece in self._readers[name].feed(chunk):
                        yield self._line(name, source, piece)
                unread = [name for name, chunk in chunks.items() if not chunk.end]

    def _line(self, name: str, source: str, piece: str | int) -> Line:
        return Line(
            attempt=self._attempt,
            rank=self._ranks[name],
            node=self._node,
            host=self._granted["host"],
            file=name,
            source=source,
            line=piece if isinstance(piece, str) else "",
            dropped_bytes=piece if isinstance(piece, int) else 0,
        )

    def _nobody(self, problems: dict[str, Exception], ended: bool) -> None:
        known = all(isinstance(problem, NotFoundError) for problem in problems.values())
        why = "; ".join(map(str, problems.values()))
        further = " any further" if any(reader.offset for reader in self._readers.values()) else ""
        what = f"{self._what()}: {self._names()} cannot be read{further}"
        self._not_before = time.monotonic() + _AGAIN_S
        self._silent_since = self._silent_since or time.monotonic()
        if self._view.follow and not (ended and known) and (not ended or self.waits(ended=True)):
            self._view.tell(f"{what} now, it is tried again: {why}")
            return
        self._given_up = True
        self._view.num_lost += 1
        self._view.tell(f"{what}: {why}")

    def _what(self) -> str:
        return f"attempt {self._attempt}, node {self._node} ({self._granted['host']})"

    def _names(self) -> str:
        ranks = [str(rank) for rank in self._ranks.values() if rank is not None and rank >= 0]
        return f"the log of rank {', '.join(ranks)}" if ranks else ", ".join(self._ranks)

    def _where(self, source: str) -> str:
        if source == "store":
            return f"the object store, {self._row.store_uri}"
        return f"{self._directory}" if source == "folder" else f"{self._directory} on the node"


@dataclass(kw_only=True)
class View:
    """What one command wants to see, and how it is told what is no line of a log.

    `remote` gives the nodes of the Ray cluster; None where there are no others than this machine.
    """

    wanted: Wanted
    follow: bool
    say: Say
    explain: Say
    remote: Callable[[], RemoteNodes] | None
    first: int = 0
    num_lost: int = 0
    told: str = ""

    def tell(self, line: str) -> None:
        if line != self.told:
            self.told = line
            self.say(line)


def stream(store: Store, job_id: str, view: View) -> Iterator[Line]:
    """Lines of the newest (or the wanted) attempt's logs.

    With `follow` it goes on through later attempts until the job is final (or the wanted attempt has ended), each
    attempt's last lines before the next one's first. What cannot be read is said and counted in `view`.

    Raises:
        NotFoundError: there is no such attempt, rank or node, or no log of it was found.
    """
    row = store.get(job_id)
    if row.job.attempt == 0 and not view.follow:
        raise NotFoundError(f"job {row.id} has had no attempt yet", hint=f"see `rexctl why {row.id}`")
    number = view.first = view.wanted.attempt or max(1, row.job.attempt)
    nodes: list[NodeLogs] | None = None
    found = False
    while True:
        row = store.get(row.id)  # before the logs are read: what was written until the end is then there
        begun = number <= row.job.attempt or view.wanted.attempt is not None
        attempt = store.attempt(row.id, number) if begun else None
        ended = attempt is not None and (attempt.ended_at is not None or number < row.job.attempt)
        ready = attempt is not None and attempt.ready_at is not None
        if attempt is not None and attempt.plan is not None and nodes is None:
            logs = view.wanted.logs(attempt.plan, f"job {row.id}, attempt {number}")
            nodes = [NodeLogs(row, attempt, node, names, view) for node, names in logs.items()]
        for node in nodes or ():
            yield from node.new_lines(ready=ready, ended=ended)
            found = found or bool(node.found)
        if view.follow and any(node.waits(ended=ended) for node in nodes or ()):
            time.sleep(_POLL_S)
            continue
        if ended:
            for node in nodes or ():
                yield from node.finish()
            nodes = None
        last = view.wanted.attempt is not None or (row.state.final and number >= row.job.attempt)
        if not view.follow or (last and (ended or not begun)):
            break
        if ended:
            number += 1
        else:
            time.sleep(_POLL_S)
    if not found and not view.num_lost:
        raise NotFoundError(
            f"job {row.id}, attempt {number}: no log was written" + (" yet" if not ended else ""),
            hint=f"`rexctl logs {row.id} --supervisor` and `rexctl why {row.id}` tell how far it came",
        )
