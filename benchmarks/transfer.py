"""Upload and verified download of 1 GiB against a radosgw on loopback, beside boto3's own file transfers.

Same settings: boto3's client has the configuration of ours, and both move parts of the same size with as many threads.
So both sign every body with its SHA-256, as boto3 does by itself over http. Ours hashes the file before it sends it,
since the digest is its name, looks at the size that was kept, and hashes what it downloads; boto3 does none of these.

Each transfer is a process of its own, that is how its memory is seen: the peak of its resident set (VmHWM) above what
it was before.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pairs import NotRun, Result, in_turn
from tests.conformance.backends import aws_environment
from tests.support.radosgw import ACCESS_KEY, SECRET_KEY, RadosGateway, missing_for_radosgw

SIZE_BYTES = 1 << 30
BUCKET, KEY = "transfer", "object"
_BLOCK = 1 << 20
_SERVER_BYTES = 8 << 30  # what the rounds upload, and what they have just replaced
_WAYS = {"up": "upload of 1 GiB", "down": "verified download of 1 GiB"}


def run() -> list[Result] | list[NotRun]:
    missing = missing_for_radosgw()
    if missing:
        return [NotRun(", ".join(_WAYS.values()), "boto3", f"radosgw {missing}")]
    with tempfile.TemporaryDirectory(prefix="rex-transfer-") as name:
        folder = Path(name)
        (folder / "server").mkdir()
        server = RadosGateway(folder / "server", memory=_SERVER_BYTES)
        server.start()
        try:
            return _measure(folder, {**os.environ, **aws_environment(server.endpoint, ACCESS_KEY, SECRET_KEY)})
        finally:
            server.stop()


def _measure(folder: Path, environment: dict[str, str]) -> list[Result]:
    with (folder / "source").open("wb") as file:
        for _ in range(SIZE_BYTES // _BLOCK):
            file.write(os.urandom(_BLOCK))
    seen: dict[tuple[str, str], list[dict[str, float]]] = {}

    def transfer(who: str, way: str) -> Callable[[], float]:
        def once() -> float:
            command = [sys.executable, "-m", "benchmarks.transfer", who, way, str(folder)]
            root = Path(__file__).resolve().parents[1]
            done = subprocess.run(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
            seen.setdefault((who, way), []).append(json.loads(done.stdout))
            return seen[who, way][-1]["seconds"]

        return once

    return [
        Result(
            name=name,
            peer=f"boto3's {way}load_fileobj, same settings",
            pairs=in_turn(transfer("ours", way), transfer("boto3", way)),
            note=_note(seen["ours", way][1:], seen["boto3", way][1:]),
        )
        for way, name in _WAYS.items()
    ]


def _note(ours: list[dict[str, float]], peer: list[dict[str, float]]) -> str:
    def ratio(key: str) -> float:
        return statistics.median(mine[key] / theirs[key] for mine, theirs in zip(ours, peer, strict=True))

    def peak(seen: list[dict[str, float]]) -> float:
        return max(once["memory_bytes"] for once in seen) / (1 << 20)

    return (
        f"{1 / ratio('seconds'):.2f} of boto3's throughput; the ratio of CPU times is {ratio('cpu'):.2f}; memory grows "
        f"by {peak(ours):.0f} and {peak(peer):.0f} MiB; load average {os.getloadavg()[1]:.0f} on {os.cpu_count()} CPUs"
    )


def transfer_once(who: str, way: str, folder: Path) -> dict[str, float]:
    """The worker: what one transfer cost. What is needed before is there, and what it leaves is removed, untimed."""
    import boto3
    from boto3.s3.transfer import TransferConfig

    from cluster.storage.digests import PART_BYTES, digest_file
    from cluster.storage.s3 import S3Store
    from cluster.storage.s3_transfer import NUM_WORKERS

    store = S3Store(BUCKET)
    client: Any = boto3.session.Session().client("s3", config=store.client.meta.config)
    settings = TransferConfig(PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=NUM_WORKERS)
    source, target = folder / "source", folder / f"target-{uuid.uuid4().hex}"

    def ours_up() -> None:
        store.put_file(KEY, source, digest_file(source))

    def ours_down() -> None:
        if store.get_file(KEY, target) != expected:
            raise RuntimeError("the download is not what was uploaded")

    def boto3_up() -> None:
        with source.open("rb") as file:
            client.upload_fileobj(file, BUCKET, KEY, Config=settings)

    def boto3_down() -> None:
        with target.open("wb") as file:
            client.download_fileobj(BUCKET, KEY, file, Config=settings)

    client.create_bucket(Bucket=BUCKET)
    store.list("")  # both have a connection
    expected = digest_file(source).sha256 if way == "down" else ""
    if way == "up":
        store.delete(KEY)
    work = {"oursup": ours_up, "oursdown": ours_down, "boto3up": boto3_up, "boto3down": boto3_down}[who + way]
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, cpu, began = _status("VmRSS"), _cpu(), time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    seen = {"seconds": seconds, "cpu": _cpu() - cpu, "memory_bytes": _status("VmHWM") - before}
    if way == "down" and target.stat().st_size != SIZE_BYTES:
        raise RuntimeError(f"{target.stat().st_size} bytes of {SIZE_BYTES} were downloaded")
    target.unlink(missing_ok=True)
    return seen


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    print(json.dumps(transfer_once(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
