"""Builds the msrun command of one node: a value that can be printed, compared and run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster import ascend
from cluster.launch import LaunchPlan
from cluster.node import binding
from jobs import contract

# What a worker may inherit from the node's environment: what says where things are on this node. Not MS_*, not other
# HCCL_*: they change how training runs, so they belong in the job's env, alike on every node and in the record. What an
# Ascend node adds stands in cluster.ascend; credentials come by name in from_env.
INHERITED = ("HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MS_NODE_S = 30.0  # MindSpore's own patience with a silent process of the cluster

PLOG = "plog"  # in an attempt's folder: where CANN and HCCL write their own logs

# Seconds between a worker's looks at whether the cluster has formed: MindSpore takes a random number of 3 to 5, which
# is most of a small job's start (measured: 11 s become 8); a large one would flood its scheduler.
QUICK_RETRY = {"MS_RETRY_INTERVAL_LOWER": "1", "MS_RETRY_INTERVAL_UPPER": "1"}
QUICK_RETRY_WORKERS = 64


@dataclass(frozen=True, kw_only=True)
class MsrunCommand:
    """One node's msrun. `argv[0]` is an absolute path; `env` is the whole environment; `cwd` is the attempt's own."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str

    def __str__(self) -> str:
        assigned = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(self.env.items()))
        return f"cd {shlex.quote(self.cwd)} && env -i {assigned} {shlex.join(self.argv)}"


def namespace_prefix(mode: str) -> tuple[str, ...]:
    """The command that puts msrun into a PID namespace of its own, or nothing where that is not allowed.

    In one, killing its first process ends every other at once, also those that left our process tree.
    """
    unshare = shutil.which("unshare")
    if mode == "never" or unshare is None:
        return ()
    prefix = (unshare, "--pid", "--fork", "--kill-child", "--mount-proc")
    probe = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if probe.returncode == 0 else ()


def build_msrun(
    plan: LaunchPlan,
    *,
    node_rank: int,
    master_addr: str,
    master_port: int,
    cpus: tuple[int, ...],
    socket_name: str,
    node_env: Mapping[str, str],
    interface: str | None = None,
    hccl_base_port: int | None = None,
    numa_of: Mapping[int, int] | None = None,
    python: str = sys.executable,
) -> MsrunCommand:
    """The command for node `node_rank` of `plan`.

    Args:
        master_addr: address of node 0 that every node reaches; msrun starts its scheduler where it is local.
        cpus: this node's CPUs for all its ranks together.
        node_env: the node's environment; only what is inherited or named by the plan is taken from it.
        interface: this node's, over which it reaches the others; for HCCL.
        hccl_base_port: first of the host ports that HCCL may take.
        numa_of: this node's CPU -> NUMA node, for gang.bind numa.
        python: interpreter of the environment that holds msrun; its folder comes first on PATH, because msrun runs
            whatever `python` it finds there.
    """
    directory = Path(plan.directory(node_rank))
    bin_dir = Path(python).parent
    env = {name: node_env[name] for name in INHERITED if name in node_env}
    path = [str(bin_dir)]
    devices: tuple[int, ...] = ()
    # MindSpore is not to give up a peer before the node's lease does: who is lost is decided there.
    patience_s = f"{max(_MS_NODE_S, plan.lease_s):.0f}"
    env.update({"MS_NODE_TIMEOUT": patience_s, "MS_HEARTBEAT_RETRY_TIMEOUT": patience_s})
    if plan.npus_per_node:
        env.update(
            ascend.environment(
                node_env,
                interface=interface,
                base_port=hccl_base_port,
                start_timeout_s=plan.start_timeout_s,
                log_dir=str(directory / PLOG),
            )
        )
        path += ascend.tool_path(node_env)
        devices = ascend.visible_devices(node_env)
    named = {name: node_env[name] for name in plan.from_env if name in node_env}
    python_paths = [source.get("PYTHONPATH") for source in (plan.env, named, env)]  # code, the job's own, then CANN's
    env.update(named)
    env.update(plan.env)
    if any(python_paths):
        env["PYTHONPATH"] = _joined(python_paths)
    if plan.world_size <= QUICK_RETRY_WORKERS and not QUICK_RETRY.keys() & env.keys():
        env.update(QUICK_RETRY)
    env.update(
        {
            "PATH": ":".join([*path, _SYSTEM_PATH]),
            "PYTHONUNBUFFERED": "1",
            contract.ENV_JOB: plan.job,
            contract.ENV_ATTEMPT: str(plan.attempt),
            contract.ENV_TOKEN: plan.token,
            contract.ENV_SOCKET: socket_name,
            contract.ENV_DRAIN_GRACE: f"{plan.grace_s:g}",
            contract.ENV_REPORT_DIR: str(directory / "reports"),
            contract.ENV_LOCAL_RANKS: str(plan.workers_per_node),
            contract.ENV_CPUS: ",".join(str(cpu) for cpu in cpus),
        }
    )
    argv = (
        str(bin_dir / "msrun"),
        f"--worker_num={plan.world_size}",
        f"--local_worker_num={plan.workers_per_node}",
        f"--node_rank={node_rank}",
        f"--master_addr={master_addr}",
        f"--master_port={master_port}",
        f"--log_dir={directory / 'logs'}",
        f"--cluster_time_out={plan.start_timeout_s:.0f}",  # no sooner than the control plane gives the start up
        "--join=True",  # without it msrun exits 0 at once, its workers alive
        f"--tail_worker_log={plan.world_size}",  # no such rank: no `tail -f` children, which can outlive msrun
        *binding.options(plan.bind, cpus=cpus, workers=plan.workers_per_node, devices=devices, numa_of=numa_of or {}),
        str(Path(__file__).with_name("shim.py")),
        *plan.program,
    )
    return MsrunCommand(argv=argv, env=env, cwd=str(directory / "cwd"))


def _joined(paths: Iterable[str | None]) -> str:
    """One search path of several, each folder once."""
    return os.pathsep.join(dict.fromkeys(part for path in paths for part in (path or "").split(os.pathsep) if part))
