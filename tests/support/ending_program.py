"""Programs that end badly, each in one way: python ending_program.py WAY [ARGUMENT]. What they leave is recorded."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from pathlib import Path


def traceback() -> None:
    weights = {"conv1": 3}
    raise ValueError(f"width must be positive, got {weights['conv1'] - 4}")


def missing_module() -> None:
    import rexnet_of_another_release  # type: ignore[import-not-found]  # noqa: F401


def memory_error() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    kept = [bytearray(64 << 20) for _ in range(64)]
    print(len(kept))


def numpy_memory() -> None:
    import numpy as np

    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    print(np.ones((1 << 16, 1 << 16), dtype=np.float32).sum())


def eat() -> None:
    """Take memory until the kernel stops it: run in a cgroup with a limit."""
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return wait()
    kept = []
    while True:
        kept.append(b"x" * (16 << 20))
        print(f"holds {16 * len(kept)} MiB", flush=True)


def segfault() -> None:
    print("about to read address 0", flush=True)
    ctypes.string_at(0)


def disk_full(folder: str) -> None:
    with Path(folder, "state").open("wb") as file:
        while True:
            file.write(b"x" * (1 << 20))


def wait() -> None:
    print("waits", flush=True)
    time.sleep(600)


def reduce(seconds: str, leaves: str = "never") -> None:
    """All-reduce over all ranks, again and again; rank 0 ends well after 20 steps if it "leaves"."""
    import mindspore as ms
    from mindspore import Tensor, ops
    from mindspore.communication import get_rank, init

    if os.environ.get("MS_ROLE") != "MS_SCHED":
        ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    init()
    add, until = ops.AllReduce(), time.monotonic() + float(seconds)
    step = 0
    while time.monotonic() < until:
        step += 1
        total = add(Tensor([1.0], ms.float32)).asnumpy()
        if step % 20 == 1:
            print(f"rank {get_rank()} step {step} total {total}", flush=True)
        if leaves == "leaves" and get_rank() == 0 and step == 20:
            return
        time.sleep(0.05)


def meet() -> None:
    """Join msrun's cluster, which needs its scheduler, and end well."""
    from mindspore.communication import get_rank, init

    init()
    if os.environ.get("MS_ROLE") != "MS_SCHED":
        print(f"rank {get_rank()} met the others", flush=True)


def affinity() -> None:
    print(f"runs on CPUs {sorted(os.sched_getaffinity(0))}", flush=True)
    policies = {line.split()[1] for line in Path("/proc/self/numa_maps").read_text().splitlines()}
    print(f"has memory by {sorted(policies)}", flush=True)


def eat_in(group: str) -> None:
    """As `eat`, in a cgroup of its own."""
    if os.environ.get("MS_ROLE") != "MS_SCHED":
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
        eat()


def device_memory() -> None:
    """More than the node's memory through MindSpore's own allocator."""
    import mindspore as ms
    from mindspore import ops

    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    print(ops.ones((1 << 17, 1 << 15), ms.float32).sum())


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
