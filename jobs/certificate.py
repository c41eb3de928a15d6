"""The resume certificate: a rolling hash over all that decided a run's steps, so that two runs can be compared.

After step s it is sha256(certificate after s - 1, s, samples of the step, bits of its loss, random state). Two runs
that agree at a step agree on every one before it; where they part is found without either's parameters.
Each checkpoint holds the lines since its parent and, in its manifest, the last of them.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from jobs.errors import CorruptCheckpoint

FILE = "certificate.txt"
START = "0" * 64  # before the first step
_LINE = re.compile(r"^(\d+) ([0-9a-f]{64}) ([0-9a-f]{8})$")


@dataclass(frozen=True, slots=True)
class Entry:
    """The certificate after `step`; `loss_bits` are the IEEE single of its loss, 8 hex digits, for a reader's sake."""

    step: int
    digest: str
    loss_bits: str

    @property
    def loss(self) -> float:
        return float(struct.unpack(">f", bytes.fromhex(self.loss_bits))[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where two runs part: their entries of the first step that differs."""

    left: Entry
    right: Entry


def extend(before: str, *, step: int, samples: bytes, loss: float, random_state: bytes) -> Entry:
    """The entry after `step` (from 1); `samples` are the ids of the global batch as little-endian int64."""
    loss_bits = struct.pack(">f", loss)
    sha256 = hashlib.sha256(bytes.fromhex(before))
    for part in (struct.pack("<Q", step), samples, loss_bits, random_state):
        sha256.update(struct.pack("<Q", len(part)))
        sha256.update(part)
    return Entry(step, sha256.hexdigest(), loss_bits.hex())


def to_lines(entries: Iterable[Entry]) -> bytes:
    return "".join(f"{e.step} {e.digest} {e.loss_bits}\n" for e in entries).encode()


def from_lines(body: bytes, source: str) -> list[Entry]:
    """The entries of one checkpoint's file; CorruptCheckpoint if it is none, or if steps are missing in it."""
    entries: list[Entry] = []
    for line in body.decode("ascii", errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            raise CorruptCheckpoint(f"{source} holds {line[:80]!r}, which is no line of a certificate")
        entry = Entry(int(match[1]), match[2], match[3])
        if entries and entry.step != entries[-1].step + 1:
            raise CorruptCheckpoint(f"{source} goes from step {entries[-1].step} to step {entry.step}")
        entries.append(entry)
    return entries


def first_difference(left: Iterable[Entry], right: Iterable[Entry]) -> Difference | None:
    """The first step that both runs have and that differs, None if they agree wherever both have been."""
    others = {entry.step: entry for entry in right}
    for entry in left:
        other = others.get(entry.step)
        if other is not None and other.digest != entry.digest:
            return Difference(left=entry, right=other)
    return None
