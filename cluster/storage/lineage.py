"""Who descends from whom, even where a manifest is damaged or gone. Pure.

A manifest tells its parent. Where it cannot (unreadable, deleted), its attempt does: an attempt has one writer, which
starts from the manifest that its pin names and commits each checkpoint on top of the one before (`commit` insists on
both). So the parent of a lost (attempt, step) is the attempt's next lower step, or else what the pin names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from jobs.manifest import parse_name


def complete_parents(
    known: Mapping[str, str | None], listed: Collection[str], pins: Mapping[int, str | None]
) -> dict[str, str | None]:
    """The parent of every manifest that is listed, pinned, or named as a parent.

    Args:
        known: parents of the manifests that could be read.
        listed: names of all manifests in the store, readable or not.
        pins: every pinned attempt, with the manifest it starts from.
    """
    steps: dict[int, list[tuple[int, str]]] = {}
    for name in listed:
        key = parse_name(name)
        if key is not None:
            steps.setdefault(key[0], []).append((key[1], name))
    parents = dict(known)
    lost = [name for name in (*listed, *pins.values(), *known.values()) if name is not None]
    while lost:
        name = lost.pop()
        key = parse_name(name)
        if name in parents or key is None:
            continue
        below = [(step, other) for step, other in steps.get(key[0], []) if step < key[1]]
        parents[name] = max(below)[1] if below else pins.get(key[0])
        lost.extend(parent for parent in (parents[name],) if parent is not None)
    return parents
