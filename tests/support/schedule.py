"""How the suite is shared out between pytest-xdist's workers: by what the tests have in common, longest first.

A file is one piece of work, for its fixtures; tests that need a server or a stack which is slow to start, or graphs
that are slow to compile, are one piece over several files. Two pieces that run at the same time share nothing but the
machine: each has ports, folders and processes of its own.
"""

from __future__ import annotations

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

TRAINING, STACK, LOCAL, RADOSGW, HOSTS = "training", "stack", "local", "radosgw", "hosts"
_PIECES = {
    "tests/integration/test_rexnet_training.py": TRAINING,  # before the validation, which takes its graphs
    "tests/integration/test_rexnet_validation.py": TRAINING,
    "tests/acceptance/test_stack.py": STACK,
    "tests/acceptance/test_docs.py": STACK,  # its last command takes the stack down
    "tests/chaos/test_checkpoint_faults.py": RADOSGW,  # needs no host
}
_NICE = 5
# What takes minutes, in the order in which it is begun: training fills the CPUs, a stack mostly waits.
_LONGEST_FIRST = (
    HOSTS,
    TRAINING,
    LOCAL,
    STACK,
    "tests/acceptance/test_demo.py",
    RADOSGW,
    "tests/unit/test_rexnet_kernels.py",
    "tests/integration/test_rexnet_programs.py",
)


def piece(nodeid: str) -> str:
    """The name of the piece of work that a test is part of."""
    path, _, test = nodeid.partition("::")
    if "radosgw" in test.partition("[")[2]:
        return RADOSGW
    if path.startswith("tests/chaos/") and path not in _PIECES:
        return HOSTS  # of which a machine has one set at a time
    if path.startswith("tests/integration/stack/"):
        return LOCAL
    return _PIECES.get(path, path)


def give_way(nodeid: str) -> None:
    """Before a test: all but the longest piece take what CPU that one leaves, for the run ends when it does."""
    if piece(nodeid) != _LONGEST_FIRST[0] and os.getpriority(os.PRIO_PROCESS, 0) == 0:
        os.nice(_NICE)


def order(items: list[pytest.Item]) -> None:
    """Longest pieces first, the tests of each as they stand in its files, the files as `_PIECES` has them."""
    ranks = {name: rank for rank, name in enumerate(_LONGEST_FIRST)}
    files = {path: rank for rank, path in enumerate(_PIECES)}

    def place(item: pytest.Item) -> tuple[int, int]:
        return ranks.get(piece(item.nodeid), len(ranks)), files.get(item.nodeid.partition("::")[0], 0)

    items.sort(key=place)


class PieceScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out whole pieces, in the order in which the tests were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return piece(nodeid)
