"""Kills: a writer, and a collector, each a process of its own, SIGKILLed at seeded moments of its work.

After each kill the newest checkpoint is the old or the new one, whole; the next attempt starts from it; and once
that has ended, a collection leaves nothing that no manifest names.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.gc import collect
from jobs.manifest import OBJECT_PREFIX, Manifest
from jobs.retention import Retention
from tests.support.chains import committed, make_commit

STATE_BYTES = 40 << 20  # several parts of an upload
NUM_RETIRED = 12
ONE = Retention(last=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """When it came, as a share of the undisturbed work's time, and what was there after it."""

    seed: int
    at: float
    survived: bool  # the work was done before the kill came
    newest: str  # "old" or "new"
    problem: str  # "" if all was as it must be


def writer_killed(uri: str, environment: Mapping[str, str], seed: int, usual_s: float) -> Kill:
    """A commit on top of a committed checkpoint, killed. `uri` is an empty store."""
    with tempfile.TemporaryDirectory(prefix="rex-kill-") as folder:
        store = open_store(uri)
        writer = CheckpointStore(store, "j")
        writer.start_attempt(1)
        old = make_commit(writer, Path(folder), 1, 10, None)
        at = random.Random(seed).random()
        survived, _ = _killed("write", uri, folder, environment, after_s=at * usual_s)
        newest = CheckpointStore(store, "j").newest()  # verifies it
        problems = []
        if newest is None or (newest != old and newest.step != 20):
            problems.append(f"the newest is {newest}")
        if survived and newest == old:
            problems.append("the commit was done and is not there")
        start = CheckpointStore(store, "j").start_attempt(2, must_resume=old.name)
        if start.manifest != newest or start.quarantined:
            problems.append(f"attempt 2 starts from {start.manifest and start.manifest.name}: {start.quarantined}")
        problems += _rubbish(uri, Retention())
        return Kill(seed=seed, at=at, survived=survived, newest="old" if newest == old else "new",
                    problem="; ".join(problems))  # fmt: skip


def collector_killed(uri: str, environment: Mapping[str, str], seed: int, usual_s: float) -> Kill:
    """A collection of a dozen states, killed. `uri` is an empty store."""
    with tempfile.TemporaryDirectory(prefix="rex-kill-") as folder:
        store = open_store(uri)
        line = _line(uri, Path(folder))
        at = random.Random(seed).random()
        survived, _ = _killed("collect", uri, folder, environment, after_s=at * usual_s)
        problems = []
        if CheckpointStore(store, "j").newest() != line[-1]:
            problems.append("the newest is lost")
        start = CheckpointStore(store, "j").start_attempt(2, must_resume=line[-1].name)
        if start.manifest != line[-1] or start.quarantined:
            problems.append(f"attempt 2 starts from {start.manifest and start.manifest.name}: {start.quarantined}")
        problems += _rubbish(uri, ONE)
        states = {f.key for m in line[:-1] for f in m.files if not f.history}
        left = states & {info.key for info in store.list(OBJECT_PREFIX)}
        if left:
            problems.append(f"{len(left)} states are left after the next collection")
        return Kill(seed=seed, at=at, survived=survived, newest="old", problem="; ".join(problems))


def usual_seconds(work: str, uri: Callable[[], str], environment: Mapping[str, str]) -> float:
    """How long that work takes here when nobody kills it: the middle of three."""
    times = []
    for _ in range(3):
        with tempfile.TemporaryDirectory(prefix="rex-kill-") as folder:
            where = uri()
            if work == "write":
                writer = CheckpointStore(open_store(where), "j")
                writer.start_attempt(1)
                make_commit(writer, Path(folder), 1, 10, None)
            else:
                _line(where, Path(folder))
            times.append(_killed(work, where, folder, environment, after_s=None)[1])
    return sorted(times)[1]


def _line(uri: str, folder: Path) -> list[Manifest]:
    writer = CheckpointStore(open_store(uri), "j")
    writer.start_attempt(1)
    return committed(writer, folder, 1, [10 * (i + 1) for i in range(NUM_RETIRED)], None)


def _killed(
    work: str, uri: str, folder: str, environment: Mapping[str, str], *, after_s: float | None
) -> tuple[bool, float]:  # fmt: skip
    """Run the work in a process; SIGKILL it that long after it began. Whether it was done, and its seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.campaigns.kills", work, uri, folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**environment, "TMPDIR": folder},
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        began = time.monotonic()
        if after_s is not None:
            try:
                process.wait(after_s)
            except subprocess.TimeoutExpired:
                process.kill()
        code = process.wait(120)
        assert code in (0, -9), f"{work} ended with {code}"
        return code == 0, time.monotonic() - began
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _rubbish(uri: str, retention: Retention) -> list[str]:
    """What a collection leaves behind that it should not, once the second attempt has ended too: until then somebody
    may still be writing what the killed one had begun to write."""
    store = open_store(uri)
    collect(store, "j", retention, ended=2)
    named = {f.key for one in CheckpointStore(store, "j").manifests() if one.manifest for f in one.manifest.files}
    foreign = [info.key for info in store.list(OBJECT_PREFIX) if info.key not in named]
    left = store.leftovers("")
    return [f"{len(what)} {kind} are left" for what, kind in ((foreign, "objects"), (left, "uploads")) if what]


def main(work: str, uri: str, folder: str) -> None:
    """The victim: gets ready, waits for its word, works."""
    store = open_store(uri)
    checkpoints = CheckpointStore(store, "j")
    old = checkpoints.newest()
    state = Path(folder) / "state-to-write"
    if work == "write":
        state.write_bytes(random.Random(1).randbytes(STATE_BYTES))
    print("ready", flush=True)
    sys.stdin.readline()
    if work == "write":
        make_commit(checkpoints, Path(folder), 1, 20, old, also={"weights": state})
    else:
        collect(store, "j", ONE)


if __name__ == "__main__":
    main(*sys.argv[1:])
