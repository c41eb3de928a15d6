"""An object store that is gone for a minute in mid-training: steps of the outage beside those of the calm after.

ReXNet 0.9 trains in one process, with EMA, and saves every few seconds to a radosgw on loopback; its gateway is stopped
(connections are refused), five times, and started again. At the end the run is told to stop, and everything that it did
has to be in its chain of checkpoints: every step's points and certificate entries once, the last step's state whole.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from benchmarks.pairs import NotRun, Result
from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs import certificate
from jobs.contract import ENV_REPORT_DIR, Exit
from jobs.files import METRICS
from jobs.manifest import Manifest
from rexnet.data.digits import write_digits
from rexnet.journal import from_lines
from tests.conformance.backends import aws_environment, make_bucket
from tests.support.radosgw import ACCESS_KEY, SECRET_KEY, RadosGateway, missing_for_radosgw

OUTAGES, OUTAGE_S, CALM_S = 5, 60.0, 30.0
SETTLE_S = 15.0  # after the start, and after each outage, for what it held back to be committed
EVERY_S = 5.0
_NAME = f"a step while the store is gone for {OUTAGE_S:.0f} s"
_TRAIN = (
    "--config=quickstart", "--distribute=false", "--image_resize=64", "--batch_size=32", "--global_batch=32",
    "--ema=true", "--epoch_size=100000", "--val_while_train=false", f"--ckpt_every={EVERY_S:g} s",
    "--ckpt_store=s3://outage/run",
)  # fmt: skip


def run() -> list[Result] | list[NotRun]:
    missing = missing_for_radosgw()
    if missing:
        return [NotRun(_NAME, "a step of the half minute after", f"radosgw {missing}")]
    with tempfile.TemporaryDirectory(prefix="rex-outage-") as name:
        folder = Path(name)
        server = RadosGateway(folder)
        try:
            server.start()
            os.environ.update(aws_environment(server.endpoint, ACCESS_KEY, SECRET_KEY))
            make_bucket("outage")
            return [_measure(folder, server)]
        finally:
            server.stop()


def _measure(folder: Path, server: RadosGateway) -> Result:
    write_digits(folder / "data")
    windows: list[tuple[float, float]] = []  # of the outages, Unix time
    with _training(folder) as process:
        _wait_for_commit(process)
        time.sleep(SETTLE_S)
        for _ in range(OUTAGES):
            server.stop_gateway()
            began = time.time()
            time.sleep(OUTAGE_S)
            windows.append((began, time.time()))
            server.start_gateway()
            time.sleep(SETTLE_S + CALM_S)
        process.send_signal(signal.SIGTERM)
        if process.wait(120) != Exit.DRAINED:
            raise RuntimeError(f"training ended with {process.returncode}\n{_log(folder)}")
    ends = _ends_of_steps(folder)
    seconds = {at: at - before for before, at in pairwise(ends)}  # by the end of the step

    def steps(began: float, ended: float) -> list[float]:
        """Also those that a window cuts: a step that waited for the store would be one."""
        return [took for at, took in seconds.items() if began < at and at - took < ended]

    gone = [steps(began, ended) for began, ended in windows]
    calm = [steps(ended + SETTLE_S, ended + SETTLE_S + CALM_S) for _, ended in windows]
    saving = json.loads((folder / "reports" / "rank_0.json").read_text())["heartbeat"]["saving"]
    if saving["failed"] < OUTAGES:
        raise RuntimeError(
            f"only {saving['failed']} commits failed in {OUTAGES} outages: they were none\n{_log(folder)}"
        )
    _check_all_is_there(len(ends))
    pairs = tuple((statistics.median(one), statistics.median(other)) for one, other in zip(gone, calm, strict=True))
    return Result(
        name=_NAME,
        peer="a step of the half minute after",
        pairs=pairs,
        note=f"{_spread('gone', gone)}; {_spread('there', calm)}; a checkpoint every {EVERY_S:g} s: "
        f"{saving['committed']} committed, {saving['failed']} failed, {saving['coalesced']} coalesced; "
        f"all {len(ends)} steps and the last state are in the chain",
    )


def _spread(name: str, windows: list[list[float]]) -> str:
    each = sorted(took for window in windows for took in window)
    most_s = each[len(each) * 99 // 100]
    return f"{name}: 99% of {len(each)} steps within {1e3 * most_s:.0f} ms, longest {1e3 * each[-1]:.0f} ms"


@contextmanager
def _training(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "reports").mkdir()
    environment = {**os.environ, ENV_REPORT_DIR: str(folder / "reports"),
                   "PYTHONPATH": str(Path(__file__).resolve().parents[1])}  # fmt: skip
    command = [sys.executable, "-m", "rexnet.train", *_TRAIN, f"--data_dir={folder / 'data'}"]
    with (folder / "train.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _log(folder: Path) -> str:
    return (folder / "train.log").read_text(errors="replace")[-2000:]


def _wait_for_commit(process: subprocess.Popen[bytes]) -> None:
    while _chain().newest() is None:
        if process.poll() is not None:
            raise RuntimeError(f"training ended with {process.returncode} before its first checkpoint")
        time.sleep(0.5)


def _chain() -> CheckpointStore:
    return CheckpointStore(open_store("s3://outage/run"), "bare")


def _ends_of_steps(folder: Path) -> list[float]:
    """Unix time at which each step ended, as the journal of the attempt has it."""
    (path,) = folder.glob("journal-*.jsonl")
    points = from_lines(path.read_bytes(), path.name)
    return [point.timestamp_ms / 1e3 for point in points if point.key == "train_loss"]


def _check_all_is_there(num_steps: int) -> None:
    store = _chain()
    newest = store.newest()
    if newest is None or newest.step != num_steps:
        raise RuntimeError(f"{num_steps} steps were done, the newest checkpoint is {newest}")
    store.verify(newest)
    every = list(range(1, num_steps + 1))
    line: list[Manifest] = store.history(newest)[::-1]
    losses = [point.step for one in line for point in from_lines(store.read(one, METRICS), one.name)
              if point.key == "train_loss"]  # fmt: skip
    entries = [
        entry.step for one in line for entry in certificate.from_lines(store.read(one, certificate.FILE), one.name)
    ]
    if losses != every or entries != every:
        raise RuntimeError(f"{num_steps} steps were done, the chain has {len(losses)} losses, {len(entries)} entries")
