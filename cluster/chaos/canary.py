"""The canary: a program that keeps the contract and computes nothing of worth, for trying faults on a real cluster.

It counts steps and hashes as it goes, so its state after N steps depends on every one of them: a run that lost,
repeated or reordered a step ends with another hash. It needs no MindSpore, and no more than a CPU.

    python -m cluster.chaos.canary --steps 200 --step_s 0.1 --commit_every 20
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs import certificate, contract
from jobs.contract import Exit, Heartbeat, HeartbeatSender, Phase, Report, write_report
from jobs.errors import CorruptCheckpoint, FencedError, StoreUnavailable
from jobs.manifest import Manifest, parse_name

STATE = "state"  # the checkpoint's file, 32 bytes
_COMMIT_TRIES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def state_after(steps: int) -> bytes:
    """What an undisturbed run ends with."""
    state = b""
    for step in range(1, steps + 1):
        state = advance(state, step)
    return state


def result(steps: int) -> tuple[int, str, list[str]]:
    """Step, certificate and SHA-256 of each file of the last checkpoint of an undisturbed run."""
    digest = certificate.START
    for step in range(1, steps + 1):
        digest = entry_after(digest, step).digest
    return steps, digest, [hashlib.sha256(state_after(steps)).hexdigest()]


def entry_after(before: str, step: int) -> certificate.Entry:
    return certificate.extend(before, step=step, samples=b"", loss=1.0 / step, random_state=b"")


def advance(state: bytes, step: int) -> bytes:
    return hashlib.sha256(state + str(step).encode()).digest()


class Canary:
    """One rank. Rank 0 alone pins the attempt, resumes and commits (in the background); the others only count."""

    def __init__(self, given: argparse.Namespace, env: Mapping[str, str]) -> None:
        self.given = given
        self.rank = int(env.get("RANK_ID", "0"))
        self.attempt = int(env.get(contract.ENV_ATTEMPT, "1"))
        self.world_size = int(env.get("MS_WORKER_NUM", "1"))
        self.reports = env.get(contract.ENV_REPORT_DIR)
        self.must_resume = env.get(contract.ENV_MUST_RESUME)
        protocol = env.get(contract.ENV_COMMIT_PROTOCOL, "create-only")
        self.store = CheckpointStore(open_store(env[contract.ENV_STORE], protocol), env[contract.ENV_JOB])
        self.beat = Heartbeat(rank=self.rank, pid=os.getpid(), total_steps=given.steps)
        self.sender = HeartbeatSender()
        self.step, self.state = 0, b""
        self.parent: str | None = None
        self.digest, self.entries = certificate.START, list[certificate.Entry]()
        self.stopped = False
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self.committing: Future[Manifest] | None = None
        signal.signal(signal.SIGTERM, self._stop)
        contract.dump_stacks_on_request(self.rank)

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def run(self) -> Exit:
        if self.rank == 0:
            self._resume()
        elif known := parse_name(self.must_resume or ""):
            self.step = known[1]  # about where rank 0 goes on
        began = time.monotonic()
        while self.step < self.given.steps and not self.stopped:
            time.sleep(self.given.step_s)
            self._advance(began)
            self._collect()
            if self.step % self.given.commit_every == 0:
                self._begin_commit()
        self.beat = replace(self.beat, phase=Phase.DRAINING.value, at=time.time())
        self.sender.send("heartbeat", self.beat)
        self._collect(wait=True)
        self._begin_commit()
        self._collect(wait=True)
        return Exit.DONE if self.step == self.given.steps else Exit.DRAINED

    def _resume(self) -> None:
        start = self.store.start_attempt(self.attempt, must_resume=self.must_resume)
        if start.manifest is not None:
            self.step, self.parent = start.manifest.step, start.manifest.name
            self.state, self.digest = self.store.read(start.manifest, STATE), start.manifest.certificate
        self.beat = replace(
            self.beat,
            resumed={"manifest": self.parent, "step": self.step},
            quarantined=[{"manifest": bad.manifest, "reason": bad.reason} for bad in start.quarantined],
        )

    def _advance(self, began: float) -> None:
        self.step += 1
        self.state = advance(self.state, self.step)
        entry = entry_after(self.digest, self.step)
        self.entries.append(entry)
        self.digest = entry.digest
        self.beat = replace(
            self.beat,
            phase=Phase.TRAINING.value,
            step=self.step,
            loss=1.0 / self.step,
            first_step_at=self.beat.first_step_at or time.time(),
            seconds={Phase.TRAINING.value: time.monotonic() - began},
            at=time.time(),
        )
        self.sender.send("heartbeat", self.beat)

    def _begin_commit(self) -> None:
        """Commit what is not committed, in the background. While an earlier commit is under way it is left to the next
        one: training waits for no store."""
        if self.rank != 0 or not self.entries or self.committing is not None:
            return
        lines, self.entries = certificate.to_lines(self.entries), []
        self.committing = self.pool.submit(self._commit, self.step, self.state, self.digest, lines, self.parent)

    def _collect(self, *, wait: bool = False) -> None:
        """Take note of a commit that is done; raises what it raised."""
        if self.committing is None or not (wait or self.committing.done()):
            return
        manifest, self.committing = self.committing.result(), None
        self.parent = manifest.name
        committed = {"manifest": manifest.name, "step": manifest.step, "sha256": manifest.sha256()}
        self.beat = replace(self.beat, checkpoint=committed)
        self.sender.send("heartbeat", self.beat)

    def _commit(self, step: int, state: bytes, digest: str, lines: bytes, parent: str | None) -> Manifest:
        """A store that is away is waited for, for half a minute in all; not by one who is asked to end."""
        for wait_s in _COMMIT_TRIES_S:
            try:
                return self._commit_once(step, state, digest, lines, parent)
            except StoreUnavailable:
                if self.stopped:
                    raise
                time.sleep(wait_s)
        return self._commit_once(step, state, digest, lines, parent)

    def _commit_once(self, step: int, state: bytes, digest: str, lines: bytes, parent: str | None) -> Manifest:
        with tempfile.TemporaryDirectory() as folder:
            file, trail = Path(folder, STATE), Path(folder, certificate.FILE)
            file.write_bytes(state)
            trail.write_bytes(lines)
            return self.store.commit(
                attempt=self.attempt,
                step=step,
                epoch=0,
                samples=step,
                parent=parent,
                files={STATE: file, certificate.FILE: trail},
                history={certificate.FILE},
                certificate=digest,
                config_sha256=hashlib.sha256(b"canary").hexdigest(),
                world_size=self.world_size,
                seed=0,
                code={},
                versions={"python": sys.version.split()[0]},
                metrics={},
            )

    def leave(self, code: Exit, reason: str) -> int:
        if self.reports:
            write_report(self.reports, Report(heartbeat=asdict(self.beat), reason=reason), self.rank)
        return int(code)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--step_s", type=float, default=0.1, help="seconds a step")
    parser.add_argument("--commit_every", type=int, default=20, help="steps")
    given = parser.parse_args(arguments)
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return be_the_scheduler(Path(os.environ[contract.ENV_REPORT_DIR]), int(os.environ[contract.ENV_LOCAL_RANKS]))
    canary = Canary(given, os.environ)
    try:
        code = canary.run()
    except (CorruptCheckpoint, FencedError) as error:
        return canary.leave(Exit.NO_REQUEUE, str(error))
    except StoreUnavailable as error:
        return canary.leave(Exit.INFRASTRUCTURE, str(error))
    return canary.leave(code, f"{code.name.lower()} at step {canary.step}")


def be_the_scheduler(reports: Path, num_ranks: int) -> int:
    """msrun's scheduler process, which a real job needs for as long as it trains: here it ends when this node has."""
    while len(list(reports.glob("outcome_[0-9]*.json"))) < num_ranks:
        time.sleep(0.2)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
