"""What the end of a process means: one table, first match wins. No I/O; `docs/exits.md` is written from it.

A row matches by exit code, by signal, by the kernel's count of processes killed for memory, by words in the last lines
(for what programs also survive and go on after, only where they fail of it: `own_words`).
Codes of the contract come first: what a program says of itself is believed. Rows marked `seen` False come from
documentation and other people's logs: nobody here has had the hardware.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cluster.outcome.last_words import NOT_STARTED, own_words
from jobs.budgets import Cause
from jobs.contract import Exit


class Kind(str, Enum):
    """What ended an attempt, in one word; finer than the budget that it costs."""

    DONE = "done"
    PROGRAM = "program"
    CONFIGURATION = "configuration"
    OUT_OF_MEMORY = "out_of_memory"
    NETWORK = "network"  # HCCL, or the links between nodes
    DEVICE = "device"  # an NPU, its driver or runtime
    SCHEDULER = "msrun_scheduler"  # msrun's own process, or the forming of its cluster
    INFRASTRUCTURE = "infrastructure"  # store, tracking, disk, Ray, our own processes
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    TIME_LIMIT = "time_limit"
    NO_REQUEUE = "no_requeue"
    HOST_LOST = "host_lost"
    HANG = "hang"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row. Everything given must match; `says` stands in brackets behind what happened."""

    name: str
    kind: Kind
    cause: Cause
    says: str
    hint: str = ""
    code: int | None = None
    signal: int | None = None
    killed_in: str | None = None  # "cgroup" or "host": where the kernel's count of OOM kills grew
    words: str | None = None  # regular expression, searched in the last lines; its named groups go into `says`
    own: bool = False  # words that a program also says of what it survives: only what `own_words` leaves counts
    scheduler: bool = False  # of msrun's scheduler process only
    follows: bool = False  # usually the echo of another rank's end: that one is blamed if there is one
    seen: bool = True  # on a machine of ours; the recorded outputs say where the others come from


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What one process's end means."""

    rule: Rule
    says: str


# Two wordings of CANN's codes are in use: "EI0006: 2024-..." and "Communication_Error_Get_Socket(EI0006): ...".
def _cann(*codes: str) -> str:
    return rf"\b(?P<cann>{'|'.join(codes)})\b"


TABLE: tuple[Rule, ...] = (
    Rule(
        name="said_config",
        kind=Kind.CONFIGURATION,
        cause=Cause.CONFIG,
        code=int(Exit.CONFIG),
        says="the program calls its configuration wrong",
        hint="it is not tried again: correct the job file and submit it anew",
    ),
    Rule(
        name="said_no_requeue",
        kind=Kind.NO_REQUEUE,
        cause=Cause.NO_REQUEUE,
        code=int(Exit.NO_REQUEUE),
        says="the program asks not to be run again",
    ),
    Rule(
        name="not_started",
        kind=Kind.INFRASTRUCTURE,
        cause=Cause.INFRASTRUCTURE,
        code=int(Exit.INFRASTRUCTURE),
        words=rf"{NOT_STARTED}: (?P<error>[^\n]*)",
        says="its node could not start another process ({error})",
        hint="see that node's memory and its limit of processes (ulimit -u, pids.max)",
    ),
    Rule(
        name="said_infrastructure",
        kind=Kind.INFRASTRUCTURE,
        cause=Cause.INFRASTRUCTURE,
        code=int(Exit.INFRASTRUCTURE),
        says="the program had no answer from its store or tracking",
    ),
    Rule(
        name="said_drained",
        kind=Kind.PREEMPTED,
        cause=Cause.PREEMPTED,
        code=int(Exit.DRAINED),
        says="stopped on request, with a checkpoint",
    ),
    Rule(
        name="oom_cgroup",
        kind=Kind.OUT_OF_MEMORY,
        cause=Cause.CRASH,
        signal=signal.SIGKILL,
        killed_in="cgroup",
        says="out of memory: the kernel killed {killed} in its cgroup",
        hint="give the node's container more memory, or use less: smaller batch, fewer data workers",
    ),
    Rule(
        name="oom_host",
        kind=Kind.OUT_OF_MEMORY,
        cause=Cause.CRASH,
        signal=signal.SIGKILL,
        killed_in="host",
        says="out of memory: the kernel killed {killed} on this host meanwhile",
        hint="the host ran out of memory: see what else runs there, or use less",
    ),
    Rule(
        name="scheduler_killed",
        kind=Kind.SCHEDULER,
        cause=Cause.INFRASTRUCTURE,
        scheduler=True,
        signal=signal.SIGKILL,
        says="msrun's scheduler process was killed",
    ),
    Rule(
        name="killed",
        kind=Kind.PROGRAM,
        cause=Cause.CRASH,
        signal=signal.SIGKILL,
        says="nothing tells by whom",
        hint="the kernel counted no process killed for memory, where that can be read: who else ends processes there?",
    ),
    Rule(
        name="oom_device",
        kind=Kind.OUT_OF_MEMORY,
        cause=Cause.CRASH,
        words=rf"{_cann('EL0004', 'EI0011', 'EE2001')}|(?i:Failed to alloc(?:ate)? (?:the )?(?:device )?memory pool"
        r"|Memory not enough|NPU out of memory|alloc device memory failed)",
        says="out of memory on the device{cann}",
        hint="a smaller batch, or another process holds the device's memory: see `npu-smi info`",
        seen=False,
    ),
    Rule(
        name="oom_program",
        kind=Kind.OUT_OF_MEMORY,
        cause=Cause.CRASH,
        words=r"\bMemoryError\b|std::bad_alloc|Cannot allocate memory|malloc (?:memory )?failed|Allocate memory failed"
        r"|Unable to allocate",
        own=True,
        says="out of memory, by its own words",
        hint="a limit (ulimit -v, cgroup) or the host's memory is reached: raise it, or use less",
    ),
    Rule(
        name="disk_full",
        kind=Kind.INFRASTRUCTURE,
        cause=Cause.INFRASTRUCTURE,
        words=r"No space left on device|Disk quota exceeded",
        own=True,
        says="a disk of this node is full",
        hint="free space under work_root, or point it at another disk",
    ),
    Rule(
        name="port_taken",
        kind=Kind.SCHEDULER,
        cause=Cause.INFRASTRUCTURE,
        scheduler=True,
        words=r"Failed to call bind, url: (?P<url>\S+) Address already in use",
        says="another process holds the master port {url}",
        hint="the next attempt takes another port",
    ),
    Rule(
        name="worker_missing",
        kind=Kind.SCHEDULER,
        cause=Cause.INFRASTRUCTURE,
        scheduler=True,
        words=r"registered node number: (?P<came>\d+), expected node number: (?P<wanted>\d+)"
        r"(?s:.*)are not successfully spawned",
        says="only {came} of {wanted} workers reached msrun's scheduler in time",
        hint="a node began too late or cannot reach the master address: gang.interface, limits.start_timeout_s",
    ),
    Rule(
        name="cluster_not_formed",
        kind=Kind.SCHEDULER,
        cause=Cause.INFRASTRUCTURE,
        words=r"are not successfully spawned|Building networking for MS_\w+ failed",
        says="msrun's cluster did not form",
        hint="a worker never came, or the master address cannot be reached: see scheduler.log of node 0",
        follows=True,
    ),
    Rule(
        name="peer_timed_out",
        kind=Kind.NETWORK,
        cause=Cause.INFRASTRUCTURE,
        scheduler=True,
        words=r"timed out node is (?P<number>\d+)|Timed out node list is",
        says="it heard nothing from a worker for MS_NODE_TIMEOUT",
        hint="see which rank or node ended first",
        follows=True,
    ),
    Rule(
        name="collective_broke",
        kind=Kind.NETWORK,
        cause=Cause.INFRASTRUCTURE,
        words=r"Launch kernel failed, name:\S*(?:AllReduce|AllGather|ReduceScatter|Broadcast|AlltoAll|Send|Receive)",
        says="a collective failed, which it does when a peer has gone",
        hint="see which other rank or node ended first",
        follows=True,
    ),
    Rule(
        name="heartbeat_lost",
        kind=Kind.NETWORK,
        cause=Cause.INFRASTRUCTURE,
        signal=signal.SIGTERM,
        words=r"Kill this process with SIGTERM",
        says="MindSpore ended it, because a peer or the scheduler was silent for MS_NODE_TIMEOUT",
        hint="see which other rank or node ended first",
        follows=True,
    ),
    Rule(
        name="peer_silent",
        kind=Kind.NETWORK,
        cause=Cause.INFRASTRUCTURE,
        words=rf"{_cann('EI0002')}|event wait timeout|(?i:notify (?:register|wait)[^\n]*time(?:s|d)? ?out)",
        says="waited in vain for a peer in a collective{cann}",
        hint="see which other rank ended or stood still first; HCCL_EXEC_TIMEOUT is the limit",
        follows=True,
        seen=False,
    ),
    Rule(
        name="peer_unreachable",
        kind=Kind.NETWORK,
        cause=Cause.INFRASTRUCTURE,
        words=rf"{_cann('EI0006', 'EI0009', 'EI0013', 'EI0015', 'EI0018')}|(?i:socket (?:establish|connect) timeout"
        r"|wait socket establish timeout|getting socket times out)",
        says="HCCL could not connect to a peer{cann}",
        hint="check the devices' links (hccn_tool) and HCCL_SOCKET_IFNAME; HCCL_CONNECT_TIMEOUT is the limit",
        follows=True,
        seen=False,
    ),
    Rule(
        name="hccl_port_taken",
        kind=Kind.NETWORK,
        cause=Cause.INFRASTRUCTURE,
        words=rf"{_cann('EI0019', 'EI0020')}|listen on ip\S* and \S* ?port\S* fail",
        says="a port that HCCL wants is taken{cann}",
        hint="reserve its ports: sysctl net.ipv4.ip_local_reserved_ports; the next attempt takes others",
        seen=False,
    ),
    Rule(
        name="hccl_configuration",
        kind=Kind.CONFIGURATION,
        cause=Cause.CRASH,
        words=_cann("EI0001", "EI0003", "EI0004", "EI0005", "EI0008", "EI0014", "EI0016", "EI0017"),
        says="HCCL refuses its configuration or arguments{cann}",
        hint="ranks differ in script, batch, CANN version or HCCL_* variables, or a rank table is wrong",
        seen=False,
    ),
    Rule(
        name="hccl",
        kind=Kind.NETWORK,
        cause=Cause.INFRASTRUCTURE,
        words=rf"{_cann('EI[0-9]{4}', 'EJ[0-9]{4}')}|HcclCommInitRootInfo\S* failed|HcclAllReduce\S* failed",
        says="HCCL failed{cann}",
        hint="see CANN's logs in `plog` of the attempt's folder on every node: the first error in time is the cause",
        follows=True,
        seen=False,
    ),
    Rule(
        name="device_gone",
        kind=Kind.DEVICE,
        cause=Cause.INFRASTRUCTURE,
        words=rf"{_cann('EL0001', 'EL0005', 'EL0015', 'EE2000', 'EE3001')}|(?i:heartbeat lost of device)",
        says="a device is absent, busy or broken{cann}",
        hint="look at `npu-smi info` on this node: health, and whose processes hold the device",
        seen=False,
    ),
    Rule(
        name="device_error",
        kind=Kind.DEVICE,
        cause=Cause.CRASH,
        words=_cann("EE[0-9]{4}", "EL[0-9]{4}", "EZ[0-9]{4}", "EH[0-9]{4}"),
        says="the device's runtime failed{cann}",
        hint="an operator, a driver call or the device itself: see CANN's logs in `plog` of the attempt's folder there",
        seen=False,
    ),
    Rule(
        name="terminated",
        kind=Kind.PROGRAM,
        cause=Cause.CRASH,
        signal=signal.SIGTERM,
        says="somebody else than rexctl stopped it, and it does not drain on SIGTERM",
    ),
    Rule(
        name="segmentation_fault",
        kind=Kind.PROGRAM,
        cause=Cause.CRASH,
        signal=signal.SIGSEGV,
        says="segmentation fault",
        hint="native code went wrong: PYTHONFAULTHANDLER=1 in env shows where",
    ),
    Rule(
        name="aborted",
        kind=Kind.PROGRAM,
        cause=Cause.CRASH,
        signal=signal.SIGABRT,
        says="native code gave up",
        hint="its last words stand in the rank's log",
    ),
    Rule(
        name="bus_error",
        kind=Kind.OUT_OF_MEMORY,
        cause=Cause.CRASH,
        signal=signal.SIGBUS,
        says="bus error: most often /dev/shm or a mapped file's disk is full",
        hint="give the container more /dev/shm",
    ),
    Rule(
        name="missing_module",
        kind=Kind.CONFIGURATION,
        cause=Cause.CRASH,
        words=r"(?m:^(?:ModuleNotFoundError|ImportError): )",
        own=True,
        says="a package is missing or another one than expected on this node",
        hint="compare the environments of the nodes: `rexctl nodes`",
    ),
    Rule(name="program", kind=Kind.PROGRAM, cause=Cause.CRASH, says="", hint="its last lines stand in the rank's log"),
)


def explain(outcome: Mapping[str, Any]) -> Meaning:
    """What an outcome (see `jobs.contract.Outcome`) means, by the first row that fits; the last one fits everything."""
    tail, reason = (str(outcome.get(name) or "") for name in ("tail", "reason"))
    everything, own = f"{tail}\n{reason}", own_words(reason, tail)
    for rule in TABLE:
        found = _matches(rule, outcome, own if rule.own else everything)
        if found is not None:
            return Meaning(rule=rule, says=rule.says.format(**found))
    raise AssertionError("the last row of the table fits everything")


def _matches(rule: Rule, outcome: Mapping[str, Any], text: str) -> dict[str, str] | None:
    """What the row's sentence wants filled in, if the row fits."""
    oom = outcome.get("oom") or {}
    killed = int(oom.get(rule.killed_in, 0)) if rule.killed_in else 0
    if rule.killed_in == "host" and oom.get("line"):
        killed = max(1, killed)
    if (
        (rule.code is not None and outcome["code"] != rule.code)
        or (rule.signal is not None and outcome["signal"] != rule.signal)
        or (rule.scheduler and outcome["rank"] >= 0)
        or (rule.killed_in is not None and killed <= 0)
    ):
        return None
    values = {"killed": f"{killed} process{'es' if killed > 1 else ''}", "cann": ""}
    if rule.words is not None:
        found = re.search(rule.words, text)
        if found is None:
            return None
        values |= {name: value or "" for name, value in found.groupdict().items()}
        values["cann"] = f" ({values['cann']})" if values["cann"] else ""
    return values
