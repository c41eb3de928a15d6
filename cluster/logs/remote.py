"""Reading logs on nodes that this machine shares no folder with: a Ray actor on each such node reads for us.

It is an actor of the command that asks, not the attempt's agent: that one is gone once the attempt has ended, and the
files are still there. It takes no CPU and ends with the command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.gang import Gangs
from cluster.logs.attempt_folders import shipping_result
from cluster.logs.files import Chunk, FolderLogs
from jobs.errors import ClusterUnreachable, NotFoundError

_ANSWER_S = 20.0  # the first one starts a process over there


class NodeReader:
    """Runs on the node. The folder is given with each call: one reader serves all attempts."""

    def look(self, directory: str) -> tuple[bool, dict[str, Any] | None]:
        """Is the folder there, and how did the shipping of its logs go (None: it is not over)?"""
        return Path(directory).is_dir(), shipping_result(Path(directory))

    def read(self, directory: str, offsets: Mapping[str, int], max_bytes: int) -> dict[str, Chunk]:
        return FolderLogs(directory).read(offsets, max_bytes)

    def tails(self, directory: str, names: list[str], num_lines: int) -> dict[str, int]:
        return FolderLogs(directory).tails(names, num_lines)


class RemoteNodes:
    """The nodes of one Ray cluster; connects when the first log is asked for."""

    def __init__(self, address: str) -> None:
        self._gangs = Gangs(address)
        self._connected = False
        self._readers: dict[str, Any] = {}

    def open(self, node: Mapping[str, str], directory: str) -> RemoteLogs:
        """The logs in that folder of a node ({"id", "host", "address"}, as the attempt was granted it).

        Raises:
            NotFoundError: the host is not in the cluster any more, or the folder is not on it.
            ClusterUnreachable: not known.
        """
        if not self._connected:
            self._gangs.connect()
            self._connected = True
        node_id = self._now(node)
        if node_id not in self._readers:
            where = NodeAffinitySchedulingStrategy(node_id, soft=False)
            self._readers[node_id] = ray.remote(NodeReader).options(num_cpus=0, scheduling_strategy=where).remote()
        logs = RemoteLogs(self._readers[node_id], node["host"], directory)
        try:
            there = logs.look()
        except ClusterUnreachable:
            del self._readers[node_id]  # it has ended, or never begun: the next try makes another one
            raise
        if not there:
            raise NotFoundError(f"{directory} is not on {node['host']} any more")
        return logs

    def _now(self, node: Mapping[str, str]) -> str:
        """The id of that host today: it is another one once Ray was started anew there."""
        alive = [one for one in self._gangs.nodes() if one.alive]
        for one in alive:
            if one.id == node["id"]:
                return one.id
        for one in alive:
            if (one.host, one.address) == (node["host"], node["address"]):
                return one.id
        raise NotFoundError(f"{node['host']} ({node['address']}) is not in the Ray cluster any more")


class RemoteLogs:
    """The same face as `cluster.logs.files.FolderLogs`; ClusterUnreachable where the node does not answer."""

    def __init__(self, reader: Any, host: str, directory: str) -> None:
        self._reader, self._host, self._directory = reader, host, directory
        self.shipping: dict[str, Any] | None = None  # how that went, once looked at

    def look(self) -> bool:
        """Is the folder there?"""
        there, self.shipping = self._ask(self._reader.look.remote(self._directory))
        return bool(there)

    def read(self, offsets: Mapping[str, int], max_bytes: int) -> dict[str, Chunk]:
        chunks: dict[str, Chunk] = self._ask(self._reader.read.remote(self._directory, dict(offsets), max_bytes))
        return chunks

    def tails(self, names: Iterable[str], num_lines: int) -> dict[str, int]:
        offsets: dict[str, int] = self._ask(self._reader.tails.remote(self._directory, list(names), num_lines))
        return offsets

    def _ask(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=_ANSWER_S)
        except (RayActorError, GetTimeoutError, ConnectionError) as error:
            raise ClusterUnreachable(f"{self._host} does not answer: {' '.join(str(error).split())[:200]}") from error
