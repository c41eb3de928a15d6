"""Digests of a file: one read, the same as hashlib's of the whole and of each part."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.digests import MAX_PARTS, PART_BYTES, digest_bytes, digest_file, part_size


@pytest.mark.parametrize(
    "size_bytes",
    [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 2 * PART_BYTES + 1, 7 * PART_BYTES + 5],
)
def test_digests_are_those_of_the_whole_and_of_each_part(tmp_path: Path, size_bytes: int) -> None:
    body = random.Random(size_bytes).randbytes(size_bytes)
    (tmp_path / "f").write_bytes(body)
    found = digest_file(tmp_path / "f")
    assert found == digest_bytes(body)
    assert (found.size_bytes, found.part_bytes) == (size_bytes, PART_BYTES)
    assert found.sha256 == hashlib.sha256(body).hexdigest()
    spans = [found.span(index) for index in range(len(found))]
    assert [start for start, _ in spans] == list(range(0, max(size_bytes, 1), PART_BYTES))
    assert spans[-1][1] == size_bytes
    assert list(found.part_sha256) == [hashlib.sha256(body[start:end]).hexdigest() for start, end in spans]


def test_file_that_gives_less_than_was_asked_for_is_hashed_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = random.Random(9).randbytes(PART_BYTES + 12_345)
    (tmp_path / "f").write_bytes(body)

    class Slow(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(buffer[:1_000_003])

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Slow(path))
    assert digest_file(tmp_path / "f") == digest_bytes(body)


@pytest.mark.parametrize("size_bytes", [0, 1, PART_BYTES * MAX_PARTS, PART_BYTES * MAX_PARTS + 1, 5 << 40])
def test_parts_are_no_more_than_s3_takes(size_bytes: int) -> None:
    step = part_size(size_bytes)
    assert step >= PART_BYTES and step % (1 << 20) == 0
    assert -(-size_bytes // step) <= MAX_PARTS
    assert step == PART_BYTES or -(-size_bytes // (step - (1 << 20))) > MAX_PARTS


def test_missing_file_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digest_file(tmp_path / "none")
