"""What a terminal is told of an event."""

from __future__ import annotations

from orchestrator.cli.follow import event_line


def test_first_node_is_named_like_any_other() -> None:
    held = {"node": 0, "survivors": [4711], "port": None}
    line = event_line({"action": "teardown_incomplete", "attempt": 2, "detail": held})
    assert line == "attempt 2: teardown incomplete (node: 0, survivors: 4711)"
