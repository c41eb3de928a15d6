"""All digests of a file, from one read: what names it, and what a store may ask for while it is sent.

A file of several parts is hashed by threads (hashlib releases the GIL), one part in each; the whole SHA-256 runs in
the reader. SHA-256 of the whole names the content; each part's MD5 goes with the part as Content-MD5, which AWS, Ceph
and OBS check, so what arrives is what was hashed even if the file was altered meanwhile. SHA-256 of the parts comes
from the same read for who asks: no store that we know both wants and checks it, and it is a quarter of the hashing.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PART_BYTES = 16 << 20
MAX_PARTS = 10_000  # S3's limit for one object
_NUM_HASHERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDigest:
    """Hexadecimal digests of one part; `sha256` only where it was asked for."""

    md5: str
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigests:
    """Hexadecimal digests of a content, whole and in parts of `part_bytes` (the last one may be shorter).

    An empty content has one empty part. `md5` is that of the whole where the whole is one part; None otherwise, since
    no store asks for it and it would cost as much as all the rest.
    """

    size_bytes: int
    sha256: str
    md5: str | None
    part_bytes: int
    parts: tuple[PartDigest, ...]

    def __len__(self) -> int:
        return len(self.parts)

    def span(self, index: int) -> tuple[int, int]:
        """First byte of part `index`, and the first one after it."""
        start = index * self.part_bytes
        return start, min(start + self.part_bytes, self.size_bytes)


def part_size(size_bytes: int) -> int:
    """Bytes in a part of a content of that size: 16 MiB, or whole MiB more where that would be over 10,000 parts."""
    if size_bytes <= PART_BYTES * MAX_PARTS:
        return PART_BYTES
    mebibytes = -(-size_bytes // (MAX_PARTS << 20))
    return mebibytes << 20


def digest_bytes(body: bytes, *, part_sha256: bool = False) -> FileDigests:
    """As `digest_file`, of bytes in memory."""
    step = part_size(len(body))
    parts = tuple(_digest_part(body[at : at + step], part_sha256) for at in range(0, max(len(body), 1), step))
    return _joined(len(body), hashlib.sha256(body).hexdigest(), step, parts)


def digest_file(path: Path, *, part_sha256: bool = False) -> FileDigests:
    """Read the file once and hash it. Holds at most as many parts in memory as there are hashing threads, and two more.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        step = part_size(os.fstat(file.fileno()).st_size)
        first = _read_part(file.fileno(), 0, step)
        if len(first) < step:
            return digest_bytes(first, part_sha256=part_sha256)
        whole = hashlib.sha256()
        size_bytes = 0
        parts: list[PartDigest] = []
        pending: deque[Future[PartDigest]] = deque()
        with ThreadPoolExecutor(_NUM_HASHERS, thread_name_prefix="digest") as pool:
            block = first
            while block:
                pending.append(pool.submit(_digest_part, block, part_sha256))
                whole.update(block)
                size_bytes += len(block)
                if len(pending) > _NUM_HASHERS:
                    parts.append(pending.popleft().result())
                block = _read_part(file.fileno(), size_bytes, step)
            parts += [future.result() for future in pending]
    return _joined(size_bytes, whole.hexdigest(), step, tuple(parts))


def _digest_part(body: bytes, with_sha256: bool) -> PartDigest:
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    return PartDigest(md5=md5, sha256=hashlib.sha256(body).hexdigest() if with_sha256 else None)


def _joined(size_bytes: int, sha256: str, step: int, parts: tuple[PartDigest, ...]) -> FileDigests:
    md5 = parts[0].md5 if len(parts) == 1 else None
    return FileDigests(size_bytes=size_bytes, sha256=sha256, md5=md5, part_bytes=step, parts=parts)


def _read_part(descriptor: int, start: int, size_bytes: int) -> bytes:
    """Up to `size_bytes` bytes from `start`; fewer only at the end of the file."""
    blocks = []
    while size_bytes and (block := os.pread(descriptor, size_bytes, start)):
        blocks.append(block)
        start += len(block)
        size_bytes -= len(block)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)
