"""Which CPUs and memory msrun binds each worker to: the same share that the worker is told by REX_CPUS.

msrun's own choice (`--bind_core=True`) takes all CPUs of the machine, also those of other attempts, so it is given ours
as a table. It knows workers by device: the i-th lowest of the visible NPUs, or i where there are none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

_CPUSET = Path("/sys/fs/cgroup/cpuset/cpuset.cpus")  # where msrun 2.10 reads which CPUs there are
_NODES = Path("/sys/devices/system/node")


def problem(bind: str, host: str, *, cpuset: Path = _CPUSET) -> str | None:
    """Why msrun would not bind on this host; it only warns in its log and goes on unbound. None if it will."""
    if bind == "none":
        return None
    lacking = "taskset" if shutil.which("taskset") is None else None
    if bind == "numa" and shutil.which("numactl") is None:
        lacking = "numactl"
    if lacking is not None:
        return f"gang.bind is {bind}, and {host} has no {lacking}, with which msrun binds"
    if not cpuset.exists():
        return f"gang.bind is {bind}, and msrun 2.10 binds only where {cpuset} exists (cgroup v1), which {host} has not"
    return None


def numa_of_cpus(root: Path = _NODES) -> dict[int, int]:
    """CPU -> NUMA node; empty where the kernel tells of none."""
    found = {}
    for path in root.glob("node[0-9]*/cpulist"):
        for part in filter(None, path.read_text().strip().split(",")):
            first, _, last = part.partition("-")
            found.update({cpu: int(path.parent.name[4:]) for cpu in range(int(first), int(last or first) + 1)})
    return found


def shares(cpus: Sequence[int], workers: int) -> list[list[int]]:
    """Each local rank's equal share, in the order of ranks; CPUs are shared where there are fewer than ranks."""
    each = len(cpus) // workers
    if each == 0:
        return [[cpus[rank % len(cpus)]] for rank in range(workers)]
    return [sorted(set(cpus[rank * each : (rank + 1) * each])) for rank in range(workers)]


def options(
    bind: str, *, cpus: Sequence[int], workers: int, devices: Sequence[int], numa_of: Mapping[int, int]
) -> tuple[str, ...]:
    """msrun's options for `bind`: none, cores, or numa (cores, and memory of those cores' NUMA nodes only)."""
    if bind == "none":
        return ()
    names = [f"device{number}" for number in (devices or range(workers))]
    mine = dict(zip(names, shares(cpus, workers), strict=True))
    cores = {name: [",".join(map(str, share))] for name, share in mine.items()}
    chosen = (f"--bind_core={json.dumps(cores)}",)
    if bind == "cores":
        return chosen
    nodes = {name: sorted({numa_of[cpu] for cpu in share if cpu in numa_of}) for name, share in mine.items()}
    memory = {name: [",".join(map(str, found))] for name, found in nodes.items() if found}
    return (*chosen, f"--bind_numa={json.dumps(memory)}") if len(memory) == workers else chosen
