"""Damage: bits flipped, bodies cut, lengthened, deleted or swapped, over all objects of a chain of two attempts.

Of files and manifests it must be seen by verification, and the next attempt must start from the newest checkpoint that
is whole. Without a whole pin nothing may start. Without a whole record of a retirement, that same start must succeed,
here with a newer checkpoint lost as well, so that the records count. And a collection after it must leave it whole.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.storage import ObjectStore
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.content import verify_blob
from cluster.storage.chain.gc import collect
from cluster.storage.chain.retired import intend
from jobs.errors import CorruptCheckpoint, ObjectNotFound
from jobs.manifest import FileEntry, Manifest
from jobs.retention import Retention
from tests.support.chains import make_commit

Damage = Callable[[random.Random, bytes], bytes | None]  # None: the object is gone


def flip(generator: random.Random, body: bytes) -> bytes:
    bit = generator.randrange(len(body) * 8)
    return body[: bit // 8] + bytes([body[bit // 8] ^ (1 << bit % 8)]) + body[bit // 8 + 1 :]


def truncate(generator: random.Random, body: bytes) -> bytes:
    return body[: generator.randrange(len(body))]


def lengthen(generator: random.Random, body: bytes) -> bytes:
    return body + generator.randbytes(generator.randrange(1, 9))


def delete(generator: random.Random, body: bytes) -> None:
    return None


KINDS: dict[str, Damage | None] = {"flip": flip, "truncate": truncate, "lengthen": lengthen, "delete": delete,
                                   "swap": None}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What was done to which object, and what came of it."""

    seed: int
    kind: str
    key: str
    detected: bool
    wrong_resume: bool
    resumed: str  # manifest, or "refused"


def run_case(store: ObjectStore, seed: int) -> Case:
    """Build a chain in the empty `store`, damage it, look, and start the next attempt."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="rex-damage-") as folder:
        return _run_case(store, seed, generator, Path(folder))


def _run_case(store: ObjectStore, seed: int, generator: random.Random, folder: Path) -> Case:
    line = _chain(store, generator, folder)
    files = {manifest.name: [f for f in manifest.files if f.history or manifest != line[0]] for manifest in line}
    whole = {manifest.name: {f.name: store.get(f.key) for f in files[manifest.name]} for manifest in line}
    keys = [info.key for info in store.list("")]
    kind, key = generator.choice(sorted(KINDS)), generator.choice(keys)
    damaged = _damage(store, generator, folder, kind=kind, key=key, keys=keys)
    if any(one.startswith("retired/") for one in damaged):
        lost = {manifest.file("weights").key for manifest in line[3:]}
        damaged |= lost
        for one in lost:
            store.delete(one)
    hit = {m.name for m in line if m.name in damaged or any(f.key in damaged for f in files[m.name])}
    seen = {manifest.name for manifest in line if not _verifies(store, manifest, files[manifest.name])}
    expected = next((manifest for manifest in reversed(line[1:]) if manifest.name not in hit), None)
    if any(one.startswith("attempts/") for one in damaged):
        expected = None
    starter = CheckpointStore(store, "j")
    try:
        start = starter.start_attempt(3, must_resume=line[-1].name)
    except CorruptCheckpoint:
        return Case(seed=seed, kind=kind, key=key, detected=seen == hit, wrong_resume=expected is not None,
                    resumed="refused")  # fmt: skip
    collect(store, "j", Retention(last=1))
    resumed = start.manifest
    wrong = resumed is None or resumed != expected
    if resumed is not None and not wrong:
        wrong = {f.name: starter.read(resumed, f.name) for f in resumed.files} != whole[resumed.name]
    newer = {manifest.name for manifest in line if expected and manifest.step > expected.step}
    quarantined = {item.manifest for item in start.quarantined}
    return Case(seed=seed, kind=kind, key=key, detected=seen == hit and quarantined == newer, wrong_resume=wrong,
                resumed=resumed.name if resumed else "nothing")  # fmt: skip


def _chain(store: ObjectStore, generator: random.Random, folder: Path) -> list[Manifest]:
    """Five checkpoints of two attempts; some content is shared from one to the next.

    The first one's state is retired. Of the third one's it was decided that it stays, when attempt 2 started from it.
    """
    line: list[Manifest] = []
    frozen = folder / "frozen"
    frozen.write_bytes(generator.randbytes(2000))
    for attempt, steps in ((1, (10, 20, 30)), (2, (40, 50))):
        writer = CheckpointStore(store, "j")
        parent = writer.start_attempt(attempt).manifest
        for step in steps:
            state = folder / f"weights-{step}"
            state.write_bytes(generator.randbytes(generator.randrange(1, 40_000)))
            parent = make_commit(writer, folder, attempt, step, parent, also={"weights": state, "frozen": frozen})
            line.append(parent)
        if attempt == 1:
            intend(store, line[-1].name, 1, "n" * 8)
    assert collect(store, "j", Retention(last=4)).retired == (line[0].name,)
    return line


def _damage(
    store: ObjectStore, generator: random.Random, folder: Path, *, kind: str, key: str, keys: list[str]
) -> set[str]:
    """Do it; returns the keys of what is no longer as it was."""
    body, change = store.get(key), KINDS[kind]
    if change is not None:
        _put(store, key, change(generator, body), folder)
        return {key}
    other = generator.choice([one for one in keys if one != key and store.get(one) != body])
    _put(store, key, store.get(other), folder)
    _put(store, other, body, folder)
    return {key, other}


def _put(store: ObjectStore, key: str, body: bytes | None, folder: Path) -> None:
    if body is None:
        store.delete(key)
        return
    (folder / "damaged").write_bytes(body)
    store.put_file(key, folder / "damaged")


def _verifies(store: ObjectStore, manifest: Manifest, files: list[FileEntry]) -> bool:
    """Whether the manifest, and those of its files that should be there, are what they were."""
    try:
        if CheckpointStore(store, "j").load(manifest.name) != manifest:
            return False
        for entry in files:
            verify_blob(store, entry, manifest.name)
    except (CorruptCheckpoint, ObjectNotFound):
        return False
    return True
