"""Who descends from whom, told from names alone: no manifest is read, so none can hide what lies below it. Pure.

An attempt has one writer, which starts from the manifest that its pin names and commits each checkpoint on top of the
one before (`commit` insists on both). So the parent of (attempt, step) is the attempt's next lower step, or else what
the pin names. That holds for manifests that are damaged or gone, too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping

from jobs.manifest import manifest_name, parse_name


def parents_of(listed: Collection[str], pins: Mapping[int, str | None]) -> dict[str, str | None]:
    """The parent of every manifest that is listed or pinned.

    Args:
        listed: names of all manifests in the store, readable or not.
        pins: every pinned attempt, with the manifest it starts from.
    """
    steps: dict[int, list[int]] = {}
    named = {name for name in (*listed, *pins.values()) if name is not None}
    for key in sorted(key for name in named if (key := parse_name(name)) is not None):
        steps.setdefault(key[0], []).append(key[1])
    parents: dict[str, str | None] = {}
    for attempt, of_attempt in steps.items():
        for step in of_attempt:
            below = bisect_left(of_attempt, step)
            parent = manifest_name(attempt, of_attempt[below - 1]) if below else pins.get(attempt)
            parents[manifest_name(attempt, step)] = parent
    return parents
