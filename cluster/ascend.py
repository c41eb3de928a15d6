"""What a node with Ascend devices needs and tells: the environment of its workers, and `npu-smi info` read.

Names and ranges are from CANN's and MindSpore's documentation; the outputs that the tests read are other people's.
Nothing here has run on hardware.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

# Where CANN lies and which devices are ours (Ray's word): set_env.sh of the node and Ray, never a job, know these.
FROM_NODE = (
    "ASCEND_HOME_PATH",
    "ASCEND_TOOLKIT_HOME",
    "ASCEND_OPP_PATH",
    "ASCEND_CUSTOM_OPP_PATH",
    "ASCEND_AICPU_PATH",
    "ASCEND_DRIVER_PATH",
    "TOOLCHAIN_HOME",
    "ASCEND_RT_VISIBLE_DEVICES",
    # of the fabric between nodes, and whether HCCL checks its own whitelist
    "HCCL_RDMA_TC",
    "HCCL_RDMA_SL",
    "HCCL_RDMA_TIMEOUT",
    "HCCL_RDMA_RETRY_CNT",
    "HCCL_INTRA_PCIE_ENABLE",
    "HCCL_INTRA_ROCE_ENABLE",
    "HCCL_SOCKET_FAMILY",
    "HCCL_WHITELIST_DISABLE",
    "HCCL_WHITELIST_FILE",
)
_TOOLKIT = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH", "TOOLCHAIN_HOME")
_CONNECT_S, _CONNECT_MAX_S = 120, 7200  # HCCL_CONNECT_TIMEOUT: default, greatest
_EXEC_S, _EXEC_MAX_S, _EXEC_UNIT_S = 1836, 17340, 68  # HCCL_EXEC_TIMEOUT: default, greatest, rounded down to units
_SMI_TIMEOUT_S = 20.0
_VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def visible_devices(node_env: Mapping[str, str]) -> tuple[int, ...]:
    """The devices that Ray gave to this node's agent, in the order in which msrun hands them to local ranks."""
    given = node_env.get(_VISIBLE, "")
    return tuple(sorted(int(device) for device in given.split(",") if device.strip()))


def misgiven(node_env: Mapping[str, str], wanted: int) -> str | None:
    """What is wrong with the devices that this node's agent has, in words; None if they are `wanted` different ones.

    Ray gives each agent its own, unless it is told not to; then any two attempts on the node would use the same.
    """
    given = node_env.get(_VISIBLE)
    try:
        num_seen = len(set(visible_devices(node_env)))
    except ValueError:
        num_seen = -1  # no list of numbers
    if num_seen == wanted:
        return None
    return f"{_VISIBLE} is {given!r}" if given is not None else f"{_VISIBLE} is not set"


def environment(
    node_env: Mapping[str, str],
    *,
    interface: str | None,
    base_port: int | None,
    start_timeout_s: float,
    log_dir: str,
) -> dict[str, str]:
    """What the workers of an attempt get beside the job's own variables, which win over these.

    HCCL connects at the first collective, when one rank may still compile its graph (463 s on a 910*, from the model's
    card) while another had it in its cache: so it waits as long as an attempt may take to start, and a collective no
    shorter than that, or a peer that never connects would be reported as a slow one.
    """
    env = {name: node_env[name] for name in FROM_NODE if name in node_env}
    if _VISIBLE in env:  # CANN supports ascending order only, and reads up to the first blank
        env[_VISIBLE] = ",".join(map(str, visible_devices(node_env)))
    env["ASCEND_PROCESS_LOG_PATH"] = log_dir  # else $HOME/ascend/log, where one attempt's lie among all others'
    connect_s = int(min(max(start_timeout_s, _CONNECT_S), _CONNECT_MAX_S))
    units = -(-connect_s // _EXEC_UNIT_S) + 1
    env["HCCL_CONNECT_TIMEOUT"] = str(connect_s)
    env["HCCL_EXEC_TIMEOUT"] = str(min(max(_EXEC_S, units * _EXEC_UNIT_S), _EXEC_MAX_S))
    if interface is not None:
        env["HCCL_SOCKET_IFNAME"] = f"={interface}"  # "=": this one, not all that begin so
    if base_port is not None:
        env["HCCL_IF_BASE_PORT"] = str(base_port)
    python_path = _below_toolkit(node_env, "PYTHONPATH")  # CANN's Python packages, nothing else of the node
    if python_path:
        env["PYTHONPATH"] = ":".join(python_path)
    return env


def tool_path(node_env: Mapping[str, str]) -> list[str]:
    """The folders of the node's PATH that belong to CANN: its operator compiler is run from there."""
    return _below_toolkit(node_env, "PATH")


def _below_toolkit(node_env: Mapping[str, str], name: str) -> list[str]:
    roots = tuple(node_env[key].rstrip("/") + "/" for key in _TOOLKIT if node_env.get(key, "").startswith("/"))
    return [part for part in node_env.get(name, "").split(":") if roots and f"{part}/".startswith(roots)]


# -- npu-smi


@dataclass(frozen=True, kw_only=True)
class Device:
    """One chip as `npu-smi info` shows it. `pids` are those of the host's process table."""

    npu: int
    chip: int
    id: int  # as ASCEND_RT_VISIBLE_DEVICES counts
    health: str
    pids: tuple[int, ...]


_HEAD = re.compile(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*([A-Za-z]\w*)\s*\|")
_CHIP = re.compile(r"^\|\s*(\d+)(?:\s+(\d+))?\s*\|\s*(?:[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d|NA)\s*\|")
_PROCESS = re.compile(r"^\|\s*(\d+)\s+(\d+)\s*\|\s*(\d+)\s*\|[^|]*\|[^|]*\|")
_PROCESS_TABLE = re.compile(r"\|\s*NPU\s+Chip\s*\|\s*Process id")


def devices(text: str) -> list[Device]:
    """Read the output of `npu-smi info`; ValueError if it is not one that we know, or has no table of processes.

    Each chip takes two lines: NPU, name and health, then chip and, where an NPU has several chips, its number among
    all. The table below lists the processes by NPU and chip.
    """
    found: list[tuple[int, int, int, str]] = []
    pids: dict[tuple[int, int], list[int]] = {}
    head: re.Match[str] | None = None
    processes = False
    for line in text.splitlines():
        processes = processes or _PROCESS_TABLE.search(line) is not None
        if processes:
            row = _PROCESS.match(line)
            if row:
                pids.setdefault((int(row[1]), int(row[2])), []).append(int(row[3]))
        elif head is not None and (chip := _CHIP.match(line)):
            npu = int(head[1])
            found.append((npu, int(chip[1]), int(chip[2]) if chip[2] else npu, head[3]))
            head = None
        else:
            head = _HEAD.match(line) or head
    if not found or not processes:
        raise ValueError(f"not the output of npu-smi info: {text.strip()[:200]!r}")
    return [
        Device(npu=npu, chip=chip, id=number, health=health, pids=tuple(pids.get((npu, chip), ())))
        for npu, chip, number, health in found
    ]


def devices_in_use(text: str) -> dict[int, tuple[int, ...]]:
    """Device -> ids of the processes that hold it, for those that are held."""
    return {device.id: device.pids for device in devices(text) if device.pids}


def ask_npu_smi() -> str | None:
    """The output of `npu-smi info`; None where there is no npu-smi: nothing to ask. OSError if it fails."""
    command = shutil.which("npu-smi")
    if command is None:
        return None
    try:
        done = subprocess.run(
            [command, "info"], capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"npu-smi did not answer within {_SMI_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise OSError(f"npu-smi exited {done.returncode}: {(done.stderr or done.stdout).strip()[:200]}")
    return done.stdout
