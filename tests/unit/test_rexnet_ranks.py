"""What ranks find out about each other, with two other ranks of which the test knows what they have."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    from rexnet.device import Ranks

NAMES = ("x86-64-v4", "x86-64-v3", "baseline")


class Three(Ranks):
    """Rank 0 of three: a sum adds what the others say when they are asked the same question."""

    def __init__(self, *others: set[str]) -> None:
        self._size, self._others, self._asked = 3, others, iter(NAMES)

    def sum(self, value: int) -> int:
        name = next(self._asked)
        return value + sum(name in other for other in self._others)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ({*NAMES}, [{*NAMES}, {*NAMES}], "x86-64-v4"),
        ({*NAMES}, [{*NAMES}, {"x86-64-v3", "baseline"}], "x86-64-v3"),
        ({"baseline"}, [{*NAMES}, {*NAMES}], "baseline"),
        (set(), [set(), set()], None),
    ],
)
def test_the_first_that_all_ranks_have_is_the_same_answer_on_each(
    mine: set[str], theirs: list[set[str]], expected: str | None
) -> None:
    ranks = [mine, *theirs]
    for own in range(3):
        others = [have for other, have in enumerate(ranks) if other != own]
        assert Three(*others).first_common(NAMES, ranks[own]) == expected
