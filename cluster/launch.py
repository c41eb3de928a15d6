"""What the control plane hands to a gang: one value that says all of an attempt, the same for every node."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.lease import LEASE_S


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """All of one attempt; each node adds its rank, its addresses and its CPUs. Holds no secret."""

    job: str
    attempt: int
    token: str  # in the environment of every process of this attempt
    nodes: int
    workers_per_node: int
    cpus_per_worker: int
    npus_per_node: int
    program: tuple[str, ...]  # ("module", name, args...) or ("script", path, args...)
    env: dict[str, str] = field(default_factory=dict)
    from_env: tuple[str, ...] = ()  # names whose values each node takes from its own environment
    prepare: tuple[str, ...] = ()  # command run on each node before the workers, with python's arguments
    work_root: str  # on each node; the attempt lives in <work_root>/<job>/attempt-<n>/node-<rank>
    grace_s: float = 60.0
    start_timeout_s: float = 600.0
    interface: str | None = None  # over which the nodes meet: a name or a network; None: where Ray knows the node
    bind: str = "none"  # what msrun binds each worker to: none, cores, numa
    isolate: str = "auto"  # PID namespace: auto, never
    lease_s: float = LEASE_S
    hang_s: float | None = None  # patience with a training rank that makes no step; None: from its own steps
    earlier_tokens: tuple[str, ...] = ()  # of this job's attempts whose end not every node could certify
    code: str = ""  # digest of our packages that every node is to run; "" for whatever it has
    code_roots: tuple[str, ...] = ()  # by node rank: the folder of our packages that was brought there, "" for its own
    data_dir: str = ""  # the job's data folder, which every node must have; "" for none
    min_free_bytes: int = 0  # on the file system of work_root
    log_limit_bytes: int = 192 << 20  # of each log file
    keep_attempts: int = 5  # of each job, on each node
    work_bound_bytes: int = 20 << 30  # of all attempts' folders on a node

    @property
    def world_size(self) -> int:
        return self.nodes * self.workers_per_node

    def directory(self, node_rank: int) -> str:
        return f"{self.work_root}/{self.job}/attempt-{self.attempt}/node-{node_rank}"

    def code_root(self, node_rank: int) -> str:
        """Where the packages lie that were brought to this node; "" if it runs its own."""
        return self.code_roots[node_rank] if self.code_roots else ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> LaunchPlan:
        values: dict[str, Any] = json.loads(text)
        for name in ("program", "from_env", "prepare", "earlier_tokens", "code_roots"):
            values[name] = tuple(values.get(name, ()))  # an attempt that an older control plane started has fewer
        return cls(**values)
