"""The liveness rule against a simple model: random interleavings of starts, commits, deaths and zombie commits.

The model knows what the rule may not: the true history. It keeps one "truth" line, the list of manifests that the
holder of the newest attempt stands on. A start takes some manifest of that line (not always the tip: a newer one may
turn out damaged) and cuts the line there; a commit of the newest attempt extends it; a commit of any older attempt, a
zombie's, must change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage.chain.lineage import parents_of
from jobs.chain import lineage, live, parse_pin_name, pin_name
from jobs.errors import CorruptCheckpoint
from jobs.manifest import manifest_name

_NUM_ATTEMPTS = 3


@dataclass
class Model:
    """A job's store as the rule sees it (parents, pins) and the truth beside it."""

    parents: dict[str, str | None] = field(default_factory=dict)
    pins: dict[int, str | None] = field(default_factory=dict)
    truth: list[str] = field(default_factory=list)  # oldest first: what the newest attempt stands on
    tips: dict[int, str | None] = field(default_factory=dict)  # per attempt, the last manifest of its own line
    steps: dict[int, int] = field(default_factory=dict)

    def start(self, skip: int) -> None:
        """The next attempt starts, from the newest live manifest but `skip` (those are damaged)."""
        attempt = max(self.pins, default=0) + 1
        candidates = live(self.parents, self.pins)
        chosen = candidates[skip] if skip < len(candidates) else None
        self.truth = self.truth[: self.truth.index(chosen) + 1] if chosen is not None else []
        self.pins[attempt] = self.tips[attempt] = chosen
        self.steps[attempt] = int(chosen[-14:-5]) if chosen is not None else 0

    def commit(self, attempt: int, num_steps: int) -> str:
        """A commit on top of the attempt's own line, whether it is still the newest or a zombie."""
        self.steps[attempt] += num_steps
        name = manifest_name(attempt, self.steps[attempt])
        self.parents[name] = self.tips[attempt]
        self.tips[attempt] = name
        if attempt == max(self.pins):
            self.truth.append(name)
        return name


_STARTS = st.tuples(st.just("start"), st.integers(0, 3))
_COMMITS = st.tuples(st.integers(1, _NUM_ATTEMPTS), st.integers(1, 50))


def play(events: list[tuple[object, int]]) -> Model:
    """The model after these events, the rule checked after each; a commit of an attempt not started is no event."""
    model = Model()
    for kind, number in events:
        before = live(model.parents, model.pins)
        if kind == "start":
            if len(model.pins) < _NUM_ATTEMPTS:
                model.start(number)
                assert set(live(model.parents, model.pins)) <= set(before)  # a pin revives nothing
        elif isinstance(kind, int) and kind in model.pins:
            name = model.commit(kind, number)
            after = live(model.parents, model.pins)
            assert [other for other in after if other != name] == before  # a commit changes no other manifest's fate
            assert (name in after) == (kind == max(model.pins))
        assert live(model.parents, model.pins) == model.truth[::-1]
    return model


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(_STARTS, _COMMITS, _COMMITS), max_size=25))
def test_any_interleaving_live_manifests_are_the_line_the_newest_attempt_stands_on(
    events: list[tuple[object, int]],
) -> None:
    play([("start", 0), *events])


def test_every_short_interleaving_live_manifests_are_the_line_the_newest_attempt_stands_on() -> None:
    """All sequences of six events over three attempts: a start from the tip or the one below it, and any commit."""
    choices: list[tuple[object, int]] = [("start", 0), ("start", 1), (1, 1), (2, 1), (3, 1)]

    def extend(events: list[tuple[object, int]]) -> int:
        if len(events) == 7:
            play(events)
            return 1
        return sum(extend([*events, choice]) for choice in choices)

    assert extend([("start", 0)]) == len(choices) ** 6


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(_STARTS, _COMMITS, _COMMITS), max_size=25), st.data())
def test_names_alone_tell_the_chain(events: list[tuple[object, int]], data: st.DataObject) -> None:
    """Deleted manifests neither hide what lies below them nor revive a dead branch; contents are not read."""
    model = play([("start", 0), *events])
    names = sorted(model.parents)
    deleted = data.draw(st.sets(st.sampled_from(names))) if names else set()
    listed = [name for name in names if name not in deleted]
    found = [name for name in live(parents_of(listed, model.pins), model.pins) if name in listed]
    assert found == [name for name in model.truth[::-1] if name in listed]
    assert parents_of(names, model.pins) == model.parents


def test_without_pins_every_manifest_is_live_newest_first() -> None:
    parents = {manifest_name(1, 5): None, manifest_name(1, 10): manifest_name(1, 5)}
    assert live(parents, {}) == [manifest_name(1, 10), manifest_name(1, 5)]


def test_other_objects_among_the_manifests_are_no_manifests() -> None:
    assert live({"manifests/readme.txt": None}, {1: None}) == []


def test_start_from_nothing_kills_all_that_was_before() -> None:
    assert live({manifest_name(1, 5): None}, {1: None, 2: None}) == []


def test_manifest_that_is_its_own_ancestor_is_corruption() -> None:
    one, two = manifest_name(1, 1), manifest_name(1, 2)
    with pytest.raises(CorruptCheckpoint, match="own ancestor"):
        lineage(one, {one: two, two: one})


@given(st.integers(1, 999_999))
def test_pin_name_parses_back(attempt: int) -> None:
    assert parse_pin_name(pin_name(attempt)) == attempt


@pytest.mark.parametrize(
    "digits",
    ["000001\n", "\u0660\u0660\u0660\u0660\u0660\u0661", "\u00b2\u00b2\u00b2\u00b2\u00b2\u00b2", "00001", "0000001"],
)
def test_digits_that_are_not_six_of_ascii_are_no_pin(digits: str) -> None:
    assert parse_pin_name(f"attempts/{digits}") is None


@given(st.text(max_size=20))
def test_other_text_is_no_pin(text: str) -> None:
    assert parse_pin_name(text) is None
    number = parse_pin_name(f"attempts/{text}")
    assert number is None or pin_name(number) == f"attempts/{text}"
