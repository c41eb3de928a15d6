"""The resume certificate: what it depends on, and where two runs part."""

from __future__ import annotations

import pytest

from jobs.certificate import START, Entry, extend, first_difference, from_lines, to_lines
from jobs.errors import CorruptCheckpoint

INPUTS = {"step": 1, "samples": b"\1\0\0\0\0\0\0\0", "loss": 2.5, "random_state": b"seed"}


def chain(losses: list[float]) -> list[Entry]:
    entries: list[Entry] = []
    for i, loss in enumerate(losses):
        before = entries[-1].digest if entries else START
        entries.append(extend(before, step=i + 1, samples=b"", loss=loss, random_state=b""))
    return entries


@pytest.mark.parametrize(
    "change", [{"step": 2}, {"samples": b""}, {"loss": 2.5000002384185791}, {"random_state": b"seee"}]
)
def test_each_input_counts_to_the_last_bit(change: dict[str, object]) -> None:
    assert extend(START, **INPUTS).digest != extend(START, **{**INPUTS, **change}).digest  # type: ignore[arg-type]
    assert extend(START, **INPUTS) == extend(START, **INPUTS)  # type: ignore[arg-type]


def test_what_moves_from_one_field_to_the_next_is_seen() -> None:
    one = extend(START, step=1, samples=b"ab", loss=0, random_state=b"c")
    assert one.digest != extend(START, step=1, samples=b"a", loss=0, random_state=b"bc").digest


def test_runs_part_at_the_first_step_that_differs_and_never_meet_again() -> None:
    left, right = chain([1, 2, 3, 4]), chain([1, 2, 3.5, 4])
    found = first_difference(left, right)
    assert found is not None
    assert (found.left.step, found.left.loss, found.right.loss) == (3, 3.0, 3.5)
    assert left[3].digest != right[3].digest, "the later step saw the same, and carries the difference on"
    assert first_difference(left, chain([1, 2])) is None


def test_lines_come_back_and_gaps_and_rubbish_do_not() -> None:
    entries = chain([1, 2, 3])
    assert from_lines(to_lines(entries), "c") == entries
    with pytest.raises(CorruptCheckpoint, match="from step 1 to step 3"):
        from_lines(to_lines([entries[0], entries[2]]), "c")
    with pytest.raises(CorruptCheckpoint, match="no line of a certificate"):
        from_lines(b"1 abc 00000000\n", "c")
