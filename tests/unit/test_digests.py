"""Digests of a file: one read, the same as hashlib's of the whole and of each part."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from cluster.storage.digests import MAX_PARTS, PART_BYTES, digest_bytes, digest_file, part_size


@pytest.mark.parametrize("part_sha256", [False, True])
@pytest.mark.parametrize(
    "size_bytes", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 7 * PART_BYTES + 5]
)
def test_digests_are_those_of_the_whole_and_of_each_part(tmp_path: Path, size_bytes: int, part_sha256: bool) -> None:
    body = random.Random(size_bytes).randbytes(size_bytes)
    (tmp_path / "f").write_bytes(body)
    found = digest_file(tmp_path / "f", part_sha256=part_sha256)
    assert found == digest_bytes(body, part_sha256=part_sha256)
    assert (found.size_bytes, found.part_bytes) == (size_bytes, PART_BYTES)
    assert found.sha256 == hashlib.sha256(body).hexdigest()
    assert found.md5 == (hashlib.md5(body).hexdigest() if size_bytes <= PART_BYTES else None)
    assert [found.span(index)[0] for index in range(len(found))] == list(range(0, max(size_bytes, 1), PART_BYTES))
    assert found.span(len(found) - 1)[1] == size_bytes
    for index, part in enumerate(found.parts):
        start, end = found.span(index)
        assert part.md5 == hashlib.md5(body[start:end]).hexdigest()
        assert part.sha256 == (hashlib.sha256(body[start:end]).hexdigest() if part_sha256 else None)


@pytest.mark.parametrize("size_bytes", [0, 1, PART_BYTES * MAX_PARTS, PART_BYTES * MAX_PARTS + 1, 5 << 40])
def test_parts_are_no_more_than_s3_takes(size_bytes: int) -> None:
    step = part_size(size_bytes)
    assert step >= PART_BYTES and step % (1 << 20) == 0
    assert -(-size_bytes // step) <= MAX_PARTS
    assert step == PART_BYTES or -(-size_bytes // (step - (1 << 20))) > MAX_PARTS


def test_missing_file_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digest_file(tmp_path / "none")
