"""The record of an attempt's end on one node, which is its teardown certificate once it names no survivor."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from cluster.node.processes import end_by_environment
from cluster.node.released import read_record, released
from jobs.contract import ENV_TOKEN, Exit

ENV_SUPERVISES = "REX_SUPERVISES"  # in the supervisor's own environment: the token of the attempt it owns
ENDED_FILE = "ended.json"
# What everybody takes for granted in a rank's outcome; a program can write there, too.
_OF_OUTCOME = {"rank", "code", "signal", "at"}


def blank_record(node_rank: int, stop_why: str | None) -> dict[str, Any]:
    """The record of a node on which nothing went wrong and nobody is left."""
    return {
        "node_rank": node_rank,
        "stop_why": stop_why,
        "fault": None,
        "outcomes": [],
        "msrun_exit": None,
        "survivors": [],
        "at": time.time(),
    }


def write_ended(directory: Path, record: dict[str, Any]) -> None:
    """Leave the record of an attempt's end on this node, whole or not at all.

    A full disk must not keep an attempt from ending: the record is also told, and the file is for when nobody listened.
    """
    temporary = directory / (ENDED_FILE + ".tmp")
    try:
        with temporary.open("w") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / ENDED_FILE)
    except OSError as error:
        say(f"{directory}: the record of the end cannot be written: {error}")


def say(line: str) -> None:
    """A line into this process's own log. On a full disk it is lost: nothing may depend on it."""
    try:
        print(line, flush=True)
    except OSError:
        return


def outcomes_on_disk(directory: Path) -> dict[int, dict[str, Any]]:
    """Each rank's outcome, as its shim left it before it sent it."""
    found = map(read_record, (directory / "reports").glob("outcome_*.json"))
    return {int(outcome["rank"]): outcome for outcome in found if outcome is not None and outcome.keys() >= _OF_OUTCOME}


def failed(record: dict[str, Any]) -> bool:
    """Did this node end in a way that ends the gang?"""
    codes = [outcome["code"] for outcome in record["outcomes"] if outcome["rank"] >= 0]
    return record["fault"] is not None or not codes or any(code not in (Exit.DONE, Exit.DRAINED) for code in codes)


def sweep(token: str) -> list[int]:
    """SIGKILL the supervisor of an attempt and all its processes on this host; who is still alive."""
    return end_by_environment(ENV_SUPERVISES, token) + end_by_environment(ENV_TOKEN, token)


def complete(directory: Path, node_rank: int, said: dict[str, Any]) -> dict[str, Any]:
    """`said`, which nobody has added to, with what the attempt's folder and this node tell besides.

    What cannot be had (the folder's disk gives no answer) is named in the message and keeps no attempt from ending:
    that nobody lives, a sweep has found.
    """
    record = dict(said)
    for look in (
        lambda: {"outcomes": list(outcomes_on_disk(directory).values())},
        lambda: released(directory, node_rank),
    ):
        try:
            record |= look()
        except Exception as error:
            unknown = f"{socket.gethostname()} cannot tell all: {type(error).__name__}: {error}"
            record["message"] = "; ".join(filter(None, [record.get("message"), unknown]))
    return record
