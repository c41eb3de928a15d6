"""From a log's bytes to its lines, and which logs of an attempt are wanted: pure, whatever they are read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.logs.files import NODE_LOGS, SCHEDULER_LOG, Chunk, worker_log
from jobs.errors import NotFoundError, SpecError

_LONGEST_BYTES = 1 << 20  # a line that does not end by then is given out in parts
SCHEDULER = -1  # the rank under which msrun's scheduler goes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which logs. `attempt` None is the newest; `tail` is the number of lines to begin with, None for all."""

    attempt: int | None = None
    rank: int | None = None
    node: int | None = None
    scheduler: bool = False
    supervisor: bool = False
    tail: int | None = None

    def __post_init__(self) -> None:
        if sum([self.rank is not None, self.scheduler, self.supervisor]) > 1:
            raise SpecError("--rank, --scheduler and --supervisor exclude each other")
        if self.rank is not None and self.node is not None:
            raise SpecError("--rank and --node exclude each other", hint="a rank runs on one node only")

    def logs(self, plan: Mapping[str, Any], what: str) -> dict[int, dict[str, int | None]]:
        """Of each wanted node the wanted logs: name -> rank (None: of the node itself).

        Args:
            plan: the attempt's launch plan.
            what: job and attempt, for the message.

        Raises:
            NotFoundError: the attempt has no such rank or node.
        """
        nodes, workers = int(plan["nodes"]), int(plan["workers_per_node"])
        if self.scheduler or self.rank == SCHEDULER:
            return {0: {SCHEDULER_LOG: SCHEDULER}}  # msrun starts it on node 0
        if self.rank is not None:
            if not 0 <= self.rank < nodes * workers:
                raise NotFoundError(f"{what}: no log of rank {self.rank}: its ranks are 0 to {nodes * workers - 1}")
            return {self.rank // workers: {worker_log(self.rank): self.rank}}
        if self.node is not None and not 0 <= self.node < nodes:
            raise NotFoundError(f"{what}: no log of node {self.node}: its nodes are 0 to {nodes - 1}")
        chosen = range(nodes) if self.node is None else (self.node,)
        if self.supervisor:
            return {node: dict.fromkeys(NODE_LOGS) for node in chosen}
        return {node: {worker_log(r): r for r in range(node * workers, (node + 1) * workers)} for node in chosen}


class LineReader:
    """One log, followed: takes chunks in the order of their offsets, gives whole lines.

    What it gives is a line, or the number of bytes that are gone where the log was cut.
    """

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset  # of the next byte that is wanted
        self._rest = b""
        self._in_cut_line = False

    def feed(self, chunk: Chunk) -> Iterator[str | int]:
        if chunk.offset > self.offset:
            yield from self.finish()
            yield chunk.offset - self.offset
            self._in_cut_line = bool(chunk.data)
        self.offset = chunk.next_offset
        *whole, self._rest = (self._rest + chunk.data).split(b"\n")
        for line in whole:
            if not self._in_cut_line:
                yield _text(line)
            self._in_cut_line = False  # what begins in a line's middle is no line
        if len(self._rest) > _LONGEST_BYTES:
            yield from self.finish()

    def finish(self) -> Iterator[str]:
        """The writer has ended: a last line without its end is a line, too."""
        if self._rest and not self._in_cut_line:
            yield _text(self._rest)
        self._rest = b""


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
