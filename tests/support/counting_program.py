"""A program that keeps the contract without MindSpore: it counts, hashes as it goes, commits, drains, resumes.

    counting_program.py --steps 100 --step_s 0.05 --commit_every 20 [--fail-at STEP --code N] [--hang-drain]

The hash after N steps depends on every step, so a resumed run that lost or repeated one ends with another hash.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs import certificate, contract
from jobs.contract import Exit, Heartbeat, HeartbeatSender, Phase, Report, write_report
from jobs.errors import CorruptCheckpoint, FencedError, StoreUnavailable

CRAWL_S = 2.0  # for a command to come in time, however slow the machine is
stopped = False


def on_term(*_: object) -> None:
    global stopped
    stopped = True


def hang_here() -> None:
    time.sleep(3600)


def main() -> int:  # noqa: PLR0915 - one page, read from top to bottom
    signal.signal(signal.SIGTERM, on_term)
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--step_s", type=float, default=0.05)
    parser.add_argument("--commit_every", type=int, default=20)
    parser.add_argument("--fail_at", type=int, default=-1)
    parser.add_argument("--fail_rank", type=int, default=0)
    parser.add_argument("--fail_attempt", type=int, default=1)
    parser.add_argument("--code", type=int, default=1)
    parser.add_argument("--hang_at", type=int, default=-1, help="make no step after this one, in the first attempt")
    parser.add_argument("--crawl_at", type=int, help="take 2 s for each step from this one on, in the first attempt")
    parser.add_argument("--ignore_term", action="store_true")
    parser.add_argument("--odd_step", type=int, default=-1, help="the loss of this step is another one")
    parser.add_argument("--need_env", default=None, help="fail as badly configured unless this variable is set")
    parser.add_argument("--print_lines", type=int, default=0, help="print so many lines before the first step")
    parser.add_argument("--slow_data_rank", type=int, default=-1, help="a rank whose steps are all waiting for data")
    parser.add_argument("--say_steps", action="store_true", help="print each step")
    parser.add_argument("--until", type=Path, help="crawl no longer once this file is there")
    given = parser.parse_args()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return 0
    rank, attempt = int(os.environ.get("RANK_ID", "0")), int(os.environ[contract.ENV_ATTEMPT])
    sender = HeartbeatSender()
    store = CheckpointStore(
        open_store(os.environ[contract.ENV_STORE], os.environ.get(contract.ENV_COMMIT_PROTOCOL, "create-only")),
        os.environ[contract.ENV_JOB],
    )
    print(f"rank {rank} of attempt {attempt} starts", flush=True)
    beat = Heartbeat(rank=rank, pid=os.getpid())
    reports = os.environ[contract.ENV_REPORT_DIR]

    def end(code: Exit | int, reason: str = "") -> int:
        write_report(reports, Report(heartbeat=beat.__dict__, reason=reason), rank)
        return int(code)

    contract.dump_stacks_on_request(rank)
    if given.need_env and given.need_env not in os.environ:
        return end(Exit.CONFIG, f"{given.need_env} is not set")
    step, state, parent = 0, b"", None
    resumed: dict[str, Any] = {"manifest": None, "step": 0}
    digest = certificate.START
    entries: list[certificate.Entry] = []
    try:
        if rank == 0:
            start = store.start_attempt(attempt, must_resume=os.environ.get(contract.ENV_MUST_RESUME))
            quarantined = [{"manifest": q.manifest, "reason": q.reason} for q in start.quarantined]
            if start.manifest is not None:
                step, state, parent = start.manifest.step, store.read(start.manifest, "state"), start.manifest.name
                resumed = {"manifest": parent, "step": step}
                digest = start.manifest.certificate
            beat = Heartbeat(**{**beat.__dict__, "resumed": resumed, "quarantined": quarantined})
    except (CorruptCheckpoint, FencedError) as error:
        return end(Exit.NO_REQUEUE, str(error))
    except StoreUnavailable as error:
        return end(Exit.INFRASTRUCTURE, str(error))

    def commit() -> None:
        nonlocal parent, beat
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            path.write_bytes(state)
            trail = Path(folder) / certificate.FILE
            trail.write_bytes(certificate.to_lines(entries))
            entries.clear()
            manifest = store.commit(
                attempt=attempt,
                step=step,
                epoch=0,
                samples=step,
                parent=parent,
                files={"state": path, certificate.FILE: trail},
                certificate=digest,
                config_sha256=hashlib.sha256(b"").hexdigest(),
                world_size=2,
                seed=0,
                code={},
                versions={},
                metrics={},
            )
        parent = manifest.name
        checkpoint = {"manifest": manifest.name, "step": step, "sha256": manifest.sha256()}
        beat = Heartbeat(**{**beat.__dict__, "checkpoint": checkpoint})

    for number in range(given.print_lines):
        print(f"line {number} {'.' * 50}")
        if number % 2000 == 0:
            time.sleep(0.01)  # a rank writes no faster than this for long
    folder, local = Path(reports), int(os.environ[contract.ENV_LOCAL_RANKS])
    first = rank - rank % local  # of this node
    folder.joinpath(f"here_{rank}").touch()
    while len(list(folder.glob("here_*"))) < local and not stopped:
        time.sleep(0.02)  # as in an all-reduce: nobody steps before all are there
    while rank != first and not folder.joinpath("told").exists() and not stopped:
        time.sleep(0.02)  # nor is anybody heard of before the first, whose step is the job's
    first_step_at, begun = None, time.time()
    while step < given.steps:
        if stopped and not given.ignore_term:
            if rank == 0 and not (parent or "").endswith(f"-{step:09d}.json"):
                commit()
            return end(Exit.DRAINED, "asked to stop")
        while step == given.hang_at and attempt == 1 and rank == given.fail_rank:
            hang_here()
        crawls = attempt == 1 and given.crawl_at is not None and step >= given.crawl_at
        crawls = crawls and not (given.until and given.until.exists())
        time.sleep(CRAWL_S if crawls else given.step_s)
        step += 1
        if given.say_steps:
            print(f"step {step}", flush=True)
        state = hashlib.sha256(state + str(step).encode()).digest()
        loss = 1.0 / step if step != given.odd_step else 2.0
        entries.append(certificate.extend(digest, step=step, samples=b"", loss=loss, random_state=b""))
        digest = entries[-1].digest
        first_step_at = first_step_at or time.time()
        if step == given.fail_at and rank == given.fail_rank and attempt == given.fail_attempt:
            print("about to fail", flush=True)
            if given.code < 0:
                os.kill(os.getpid(), -given.code)
            return end(given.code, "told to fail")
        if rank == 0 and step % given.commit_every == 0 and step < given.steps:
            commit()
        seconds = {"training": time.time() - begun}
        if rank == given.slow_data_rank:
            seconds["data_wait"] = seconds["training"]
        beat = Heartbeat(
            **{
                **beat.__dict__,
                "phase": Phase.TRAINING.value,
                "step": step,
                "total_steps": given.steps,
                "loss": loss,
                "images_per_s": 1.0 / given.step_s,
                "first_step_at": first_step_at,
                "seconds": seconds,
                "at": time.time(),
            }
        )
        sender.send("heartbeat", beat)
        if rank == first:
            folder.joinpath("told").touch()
    if rank == 0:
        beat = Heartbeat(**{**beat.__dict__, "metrics": {"top1": 1.0, "top5": 1.0, "loss": 1.0 / step}})
        commit()
        print(f"final {state.hex()}", flush=True)
    return end(Exit.DONE)


if __name__ == "__main__":
    sys.exit(main())
