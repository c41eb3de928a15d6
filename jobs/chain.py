"""Which manifests are alive: the fencing rule over pins, with no clock in it.

Starting attempt b writes the pin `attempts/b`, naming the manifest it starts from (or none). A manifest of attempt a
is live if, for every pinned b > a, it is pin(b) or an ancestor of pin(b). So whatever a replaced attempt still
commits is a dead branch from the moment its successor was pinned, whenever it arrives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jobs.errors import CorruptCheckpoint
from jobs.manifest import parse_name

PIN_PREFIX = "attempts/"
_PIN = re.compile(r"attempts/(\d{6})", re.ASCII)


def pin_name(attempt: int) -> str:
    """`attempts/000002`"""
    return f"{PIN_PREFIX}{attempt:06d}"


def parse_pin_name(name: str) -> int | None:
    match = _PIN.fullmatch(name)
    return int(match[1]) if match else None


def lineage(name: str | None, parents: Mapping[str, str | None]) -> list[str]:
    """`name` and its ancestors, newest first; it ends where a parent is unknown. A cycle is corruption."""
    line: list[str] = []
    seen: set[str] = set()
    while name is not None:
        if name in seen:
            raise CorruptCheckpoint(f"manifest {name} is its own ancestor")
        seen.add(name)
        line.append(name)
        name = parents.get(name)
    return line


def live(parents: Mapping[str, str | None], pins: Mapping[int, str | None]) -> list[str]:
    """Names of the live manifests, newest (attempt, step) first.

    Args:
        parents: every manifest found in the store, with the name of its parent.
        pins: every attempt pinned in the store, with the name of the manifest it starts from.
    """
    lines = {attempt: set(lineage(pin, parents)) for attempt, pin in pins.items()}
    found: list[tuple[tuple[int, int], str]] = []
    for name in parents:
        key = parse_name(name)
        if key is not None and all(name in line for attempt, line in lines.items() if attempt > key[0]):
            found.append((key, name))
    return [name for _, name in sorted(found, reverse=True)]
