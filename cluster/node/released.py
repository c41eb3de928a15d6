"""What a node that an attempt has left must show beside dead processes: the master port free, the devices free."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from cluster.ascend import ask_npu_smi, devices_in_use, visible_devices
from cluster.node.endpoint import port_is_free
from cluster.node.processes import is_alive

START_FILE = "start.json"  # in the attempt's folder: what its supervisor was started with
_WAIT_S = 5.0  # the driver takes a moment to let a killed process's device go
_LOOK_S = 0.5


def start_facts(address: str, port: int, interface: str, *, npus: int) -> dict[str, Any]:
    """What `released` has to know, for the start file."""
    return {
        "master_addr": address,
        "master_port": port,
        "interface": interface,
        "devices": list(visible_devices(os.environ)) if npus else [],
    }


def read_record(path: Path) -> dict[str, Any] | None:
    """What one of an attempt's files says; None if it is not there, damaged (a power cut can leave it empty), or on a
    disk that does not answer.

    None of that must keep an attempt from ending: without it less is known, and a sweep still finds who lives.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_start(directory: Path, start: Mapping[str, Any]) -> None:
    """Leave the start file whole or not at all; OSError on a full disk."""
    temporary = directory / (START_FILE + ".tmp")
    temporary.write_text(json.dumps(start, indent=1))
    os.replace(temporary, directory / START_FILE)


def released(directory: Path, node_rank: int, *, ask: Callable[[], str | None] = ask_npu_smi) -> dict[str, Any]:
    """The proofs as fields of the record of the end.

    port_free: None where the master port is not (or never was) this node's; devices_busy: device -> process ids, of
    the devices that the attempt had, None where the question does not apply; devices_unknown: why npu-smi could not
    tell, if so. Not knowing holds nothing up: processes are proven dead without it.
    """
    start, port_free = read_record(directory / START_FILE), None
    if start is None:
        return {"port_free": None, "devices_busy": None}  # nothing was ever started
    if node_rank == 0 and not _never_had_it(directory):
        port_free = port_is_free(start["master_addr"], int(start["master_port"]))
    mine = set(start.get("devices", ()))
    if not mine:
        return {"port_free": port_free, "devices_busy": None}
    deadline = time.monotonic() + _WAIT_S
    try:
        while (said := ask()) is not None:
            busy = _busy(devices_in_use(said), mine)
            if not busy or time.monotonic() > deadline:
                return {"port_free": port_free, "devices_busy": busy}
            time.sleep(_LOOK_S)
    except (OSError, ValueError) as error:
        return {"port_free": port_free, "devices_busy": None, "devices_unknown": str(error)}
    return {"port_free": port_free, "devices_busy": None}


def _busy(in_use: Mapping[int, tuple[int, ...]], mine: Collection[int]) -> dict[str, list[int]]:
    """Our devices and who holds them, without processes that live here: ours are dead, so those are somebody else's.

    (On a 910C a process of one chip shows with some memory on others too.) What is left is a process that the driver
    has not let go, or one that only the host of our container can see.
    """
    held = {device: [pid for pid in pids if not is_alive(pid)] for device, pids in in_use.items() if device in mine}
    return {str(device): pids for device, pids in held.items() if pids}


def _never_had_it(directory: Path) -> bool:
    """Did msrun's scheduler find the port taken by somebody else? Then it is not ours to prove free."""
    from cluster.outcome.exits import explain  # not before the end: it imports pydantic

    outcome = read_record(directory / "reports" / "outcome_-1.json")
    return outcome is not None and explain(outcome).rule.name == "port_taken"


def left(record: dict[str, Any]) -> dict[str, Any]:
    """What a record of the end says is not released yet; empty when the next attempt may have the node."""
    held: dict[str, Any] = {}
    if record.get("survivors"):
        held["alive"] = record["survivors"]
    if record.get("port_free") is False:
        held["port"] = "the master port is still taken"
    if record.get("devices_busy"):
        held["devices"] = record["devices_busy"]
    return held
