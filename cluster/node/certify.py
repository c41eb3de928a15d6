"""The teardown certificate of a node whose agent cannot give it: made by a task on that very node."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cluster.launch import LaunchPlan
from cluster.logs.shipping import start_shipping
from cluster.node.ending import ENDED_FILE, ENV_SUPERVISES, blank_record, complete, say, sweep
from cluster.node.processes import find_by_environment
from cluster.node.released import read_record, released

CERTIFIED_FILE = "certified"
_SUPERVISOR_END_S = 10.0  # a supervisor that lost its agent ends its tree in well under a second


def _mark_certified(directory: Path) -> None:
    """From now on no supervisor starts msrun here: one that lives is found by the sweep, a later one finds this mark.

    (Its agent may have been stopped, and its death be on the way only.)
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CERTIFIED_FILE).touch()
    except OSError as error:  # a full disk: then its death and its lease have to do
        say(f"{directory}: cannot be marked as certified: {error}")


def certified_before(directory: Path) -> bool:
    """Was this node's part of the attempt certified as ended already?"""
    return (directory / CERTIFIED_FILE).exists()


def certify(plan_json: str, node_rank: int) -> dict[str, Any]:
    """Teardown certificate of a node whose agent died: wait for its supervisor's end, sweep, read its record."""
    plan = LaunchPlan.from_json(plan_json)
    directory = Path(plan.directory(node_rank))
    _mark_certified(directory)
    deadline = time.monotonic() + _SUPERVISOR_END_S
    while find_by_environment(ENV_SUPERVISES, plan.token) and time.monotonic() < deadline:
        time.sleep(0.1)
    # Its agent is dead for certain (the caller killed it first): what is left now owns nothing any more.
    survivors = sweep(plan.token)
    if not survivors:
        start_shipping(plan, node_rank)
    record = read_record(directory / ENDED_FILE)
    if record is not None:
        return {**record, "survivors": survivors, **released(directory, node_rank)}
    said = {
        **blank_record(node_rank, None),
        "fault": {"rank": None, "code": None},
        "message": "the agent died",
        "unattended": True,  # nobody saw when
        "survivors": survivors,
    }
    return complete(directory, node_rank, said)
