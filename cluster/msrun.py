"""Builds the msrun command of one node: a value that can be printed, compared and run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.launch import LaunchPlan
from jobs import contract

# What a worker may inherit from the node. Everything else is given on purpose: by the plan or by name in from_env.
INHERITED = ("HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
INHERITED_PREFIXES = ("ASCEND_", "HCCL_", "GLOO_", "MS_")
MSRUN_OWN = ("MS_ROLE", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_NODE_ID")


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


def build_msrun(
    plan: LaunchPlan,
    *,
    node_rank: int,
    master_addr: str,
    master_port: int,
    cpus: tuple[int, ...],
    socket_name: str,
    node_env: Mapping[str, str],
    python: str = sys.executable,
) -> MsrunCommand:
    """The command for node `node_rank` of `plan`.

    Args:
        master_addr: address of node 0 that every node reaches; msrun starts its scheduler where it is local.
        cpus: this node's CPUs for all its ranks together.
        node_env: the node's environment; only what is inherited or named by the plan is taken from it.
        python: interpreter of the environment that holds msrun; its folder comes first on PATH, because msrun runs
            whatever `python` it finds there.
    """
    directory = Path(plan.directory(node_rank))
    bin_dir = Path(python).parent
    env = {
        name: value
        for name, value in node_env.items()
        if (name in INHERITED or name.startswith(INHERITED_PREFIXES)) and name not in MSRUN_OWN
    }
    env.update({name: node_env[name] for name in plan.from_env if name in node_env})
    env.update(plan.env)
    if plan.world_size <= QUICK_RETRY_WORKERS and not QUICK_RETRY.keys() & env.keys():
        env.update(QUICK_RETRY)
    env.update(
        {
            "PATH": f"{bin_dir}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
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
        "--join=True",  # without it msrun exits 0 at once, its workers alive
        f"--tail_worker_log={plan.world_size}",  # no such rank: no `tail -f` children, which can outlive msrun
        str(Path(__file__).with_name("shim.py")),
        *plan.program,
    )
    return MsrunCommand(argv=argv, env=env, cwd=str(directory / "cwd"))
