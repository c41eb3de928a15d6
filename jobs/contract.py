"""The contract between a training program and the control plane.

A program that keeps it can be run by us, whatever it trains:

* it reads its place in the world from the environment names below (all optional: without them it runs bare);
* it may call `dump_stacks_on_request` at its start: should it hang, its stacks can then be had anywhere;
* on SIGTERM it finishes its step, commits a checkpoint, passes a barrier with its peers and exits 75;
* it exits with one of `Exit`; any other code is a crash;
* now and then it sends a `Heartbeat` (a datagram; losing one costs nothing) and at its end leaves a `Report`.

Standard library only: the rank shim imports this in every worker.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass, field, fields
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, TypeVar

# Environment names. Values never hold a secret: credentials come under their own usual names, by reference.
ENV_JOB = "REX_JOB"  # job id
ENV_ATTEMPT = "REX_ATTEMPT"  # attempt number, from 1
ENV_TOKEN = "REX_TOKEN"  # identifies every process of one attempt in /proc/*/environ
ENV_STORE = "REX_STORE"  # URI of the job's own prefix in the object store
ENV_COMMIT_PROTOCOL = "REX_COMMIT_PROTOCOL"  # how an object that must be new is written there: see docs/storage.md
ENV_SOCKET = "REX_SOCKET"  # abstract name of the supervisor's datagram socket
ENV_REPORT_DIR = "REX_REPORT_DIR"  # where a rank leaves its Report as rank_N.json
ENV_MUST_RESUME = "REX_MUST_RESUME"  # manifest name the store is known to hold: never start from zero
ENV_INIT_FROM = "REX_INIT_FROM"  # JSON {"store": URI, "manifest": name, "sha256": hex}
ENV_MLFLOW_RUN = "REX_MLFLOW_RUN"  # the job's MLflow run; MLFLOW_TRACKING_URI says where
ENV_CPUS = "REX_CPUS"  # CPUs of this node for all its ranks, "0,1,2,3": rank i takes the i-th equal share
ENV_LOCAL_RANKS = "REX_LOCAL_RANKS"  # ranks on this node, the same on every node
ENV_COMPILE_CACHE = "REX_COMPILE_CACHE"  # folder for compiled graphs that outlives the attempt
ENV_DRAIN_GRACE = "REX_DRAIN_GRACE_S"  # seconds from SIGTERM to SIGKILL
ENV_DATA_DIR = "REX_DATA_DIR"  # folder of the data set; an explicit argument of the program wins


STACKS_SIGNAL = signal.SIGUSR1  # asks a program that has offered it to write its threads' stacks


class Exit(IntEnum):
    """What a training program's exit code means (sysexits.h where it has a fitting one)."""

    DONE = 0
    CONFIG = 64  # bad configuration: never retried
    INFRASTRUCTURE = 69  # store, network or tracking gave no answer: retried on a budget of its own
    DRAINED = 75  # stopped on request with a committed checkpoint
    NO_REQUEUE = 93  # do not run me again (fenced, or nothing to resume where something must be)


class Phase(str, Enum):
    """What a rank is doing right now."""

    STARTING = "starting"
    RESUMING = "resuming"
    COMPILING = "compiling"
    TRAINING = "training"
    VALIDATING = "validating"
    DRAINING = "draining"
    DONE = "done"


_Record = TypeVar("_Record", bound="_JsonRecord")


class _JsonRecord:
    """JSON in and out of a dataclass; unknown keys are dropped so that versions may differ by an added field."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[_Record], values: dict[str, Any]) -> _Record:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: value for key, value in values.items() if key in known})

    @classmethod
    def from_json(cls: type[_Record], text: str | bytes) -> _Record:
        return cls.from_dict(json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Heartbeat(_JsonRecord):
    """Where one rank is. `seconds` are cumulative in this process, by phase name and "checkpoint_stall"; "data_wait",
    in which training waited for its next batch, is part of the phase's own."""

    rank: int
    pid: int = 0
    phase: str = Phase.STARTING.value
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    images_per_s: float | None = None  # of the whole gang
    loss: float | None = None
    first_step_at: float | None = None  # Unix time at the end of this attempt's first step
    stop_seen_at: float | None = None  # Unix time at which the rank saw SIGTERM
    metrics: dict[str, float] = field(default_factory=dict)  # newest validation: top1, top5, loss
    resumed: dict[str, Any] | None = None  # {"manifest", "step"} once the start is decided
    quarantined: list[dict[str, Any]] = field(default_factory=list)  # [{"manifest", "reason"}]
    checkpoint: dict[str, Any] | None = None  # newest commit: {"manifest", "step", "sha256"}
    # When it saves ("rule", "interval_s"), on what grounds ("cost_s" and "commit_s" of a checkpoint,
    # "mean_time_between_interruptions_s", "num_interruptions"), and "committed", "coalesced", "failed" in this attempt
    saving: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    mlflow_run: str | None = None
    at: float = 0.0  # Unix time of sending


@dataclass(frozen=True, kw_only=True)
class Report(_JsonRecord):
    """What a rank says of its own end; written by the program, read by the shim."""

    heartbeat: dict[str, Any]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome(_JsonRecord):
    """How one rank ended, as its shim saw it: msrun's own exit code tells neither code nor signal nor rank."""

    rank: int  # -1 for msrun's scheduler process
    pid: int
    code: int | None  # exit code, None when killed by a signal
    signal: int | None
    reason: str = ""  # the program's own sentence, or the line of its output that tells most
    tail: str = ""  # the last lines of its output, and the ones before them that look like errors
    oom: dict[str, Any] | None = None  # processes that the kernel killed for memory meanwhile: "cgroup", "host", "line"
    heartbeat: dict[str, Any] | None = None  # its last one, from the Report
    at: float = 0.0


def checked_heartbeat(values: dict[str, Any]) -> dict[str, Any]:
    """A heartbeat as plain values, fit to be stored and shown; ValueError if a program sent something else.

    Numbers that are not finite become None: JSON has no word for them.
    """
    beat = asdict(Heartbeat.from_dict(values))
    for name in ("rank", "step", "total_steps", "epoch"):
        beat[name] = int(beat[name])
    for name in ("images_per_s", "loss", "first_step_at", "stop_seen_at"):
        beat[name] = _finite(beat[name])
    for name in ("metrics", "seconds"):
        beat[name] = {str(key): _finite(value) or 0.0 for key, value in dict(beat[name]).items()}
    for name, wanted in (("resumed", ("manifest", "step")), ("checkpoint", ("manifest", "step", "sha256"))):
        if beat[name] is not None:
            beat[name] = {key: beat[name][key] for key in wanted}
            beat[name]["step"] = int(beat[name]["step"])
    if beat["saving"] is not None:
        beat["saving"] = {
            str(key): value if isinstance(value, int | str) else _finite(value)
            for key, value in dict(beat["saving"]).items()
        }
    beat["quarantined"] = [{key: str(bad[key]) for key in ("manifest", "reason")} for bad in beat["quarantined"]]
    return {**beat, "phase": str(beat["phase"]), "at": _finite(beat["at"]) or 0.0}


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


class HeartbeatSender:
    """Sends heartbeats to the supervisor; never blocks, never raises, does nothing in a bare run.

    A datagram that finds the socket full or gone is dropped: training must not wait for anybody who watches.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name if name is not None else os.environ.get(ENV_SOCKET)
        self._socket: socket.socket | None = None
        if self._name:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def wanted(self) -> bool:
        """Is there a supervisor to send to?"""
        return self._socket is not None

    def send(self, kind: str, record: Heartbeat | Outcome | dict[str, Any]) -> bool:
        """Send one message; True if the kernel took it."""
        if self._socket is None:
            return False
        body = record if isinstance(record, dict) else asdict(record)
        try:
            self._socket.sendto(json.dumps({"kind": kind, **body}).encode(), "\0" + str(self._name))
        except OSError:
            return False  # full or gone: the next heartbeat says more anyway, and outcomes are on disk too
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def write_report(directory: str | Path, report: Report, rank: int) -> None:
    """Leave `report` as rank_N.json, whole or not at all.

    On a full disk there is none, and the program's end is not to fail on it: its exit code says what counts.
    """
    target = Path(directory) / f"rank_{rank}.json"
    temporary = target.with_suffix(".tmp")
    try:
        temporary.write_text(report.to_json())
        os.replace(temporary, target)
    except OSError as error:
        print(f"{target} cannot be written: {error}", file=sys.stderr, flush=True)


def stacks_path(directory: str | Path, rank: int) -> Path:
    """Where a rank writes its stacks. The file is there once the rank has offered to."""
    return Path(directory) / f"stacks_{rank}.txt"


def dump_stacks_on_request(rank: int) -> None:
    """Offer to write all threads' stacks on `STACKS_SIGNAL`, from C, whatever Python does; nothing in a bare run."""
    directory = os.environ.get(ENV_REPORT_DIR)
    if directory:
        faulthandler.register(STACKS_SIGNAL, file=stacks_path(directory, rank).open("a"), all_threads=True)
