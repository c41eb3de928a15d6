"""`make chaos-short` and `make chaos`: faults on three hosts that share nothing but an S3 and an MLflow server, or on
several such sets at the same time; the reports in docs/."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.chaos.plan import KINDS
from orchestrator.chaos.report import Findings, read, write
from tests.support import hosts as hosts_support
from tests.support.hands import Hands
from tests.support.hosts import apart
from tests.support.radosgw import missing_for_radosgw
from tests.support.ray_hosts import Cluster, lone_hosts
from tests.support.rex import REXCTL
from tests.support.signals import end_tidily

DOCS = Path(__file__).parents[2] / "docs"
LEASE_S = 12.0
_OUTLASTING = 220  # training steps of 0.1 to 0.15 s: more than a lease, even if only the last 70% are left
_HANG_S = 10.0  # less than a lease, for which what is stopped stays so
_STORE_BYTES = 10 << 30  # for all checkpoints of all jobs
# ReXNet 0.9 on the digits, small enough to be started hundreds of times.
TRAINING: dict[str, Any] = {
    "name": "rexnet",
    "gang": {"nodes": 2, "workers_per_node": 1},
    "program": {
        "module": "rexnet.train",
        "args": [
            "--config=quickstart", "--image_resize=16", "--batch_size=16", "--global_batch=32",
            "--val_interval=1000", "--drop_rate=0.2",
        ],
    },
    "data": {"builtin": "digits"},
    "retry": {"backoff_s": 0.5},
}  # fmt: skip


def run(
    cluster: Cluster, report: Path, *, timeout_s: float, shown: bool = False, **plan: Any
) -> subprocess.CompletedProcess[str]:
    """`rexctl chaos` on the first host, with hands outside for cables, power and servers; its output kept or shown."""
    with Hands(cluster) as hands:
        path = cluster.folder / "plan.yaml"
        common = {"spare": ["rexhost1"], "commands": hands.commands(), "allow_full_disk": True}
        path.write_text(yaml.safe_dump({**common, **plan}))
        command = [REXCTL, "chaos", str(path), "--report", str(report)]
        return cluster.hosts.run(1, command, env=cluster.rex_env, timeout=timeout_s, capture_output=not shown)


def training(cluster: Cluster, *, steps: int, hang_s: float) -> dict[str, Any]:
    """The plan's `canary` for real training; its job file lies where `run` writes the plan."""
    path = cluster.folder / "training.yaml"
    more = [f"--max_steps={steps}", f"--ckpt_every={steps // 4} steps"]
    program = {**TRAINING["program"], "args": [*TRAINING["program"]["args"], *more]}
    spec = {**TRAINING, "program": program, "limits": {"hang_s": hang_s}, "credentials": cluster.credentials}
    path.write_text(yaml.safe_dump(spec))
    return {"job": path.name}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="faults (default 200)")
    parser.add_argument("--each", type=int, help="faults of each kind, instead of --count")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sets", type=int, default=1, help="sets of hosts side by side; each takes a seed of its own")
    parser.add_argument("--plan", default="{}", help="more keys of the chaos plan, as YAML in a line")
    parser.add_argument("--training", action="store_true", help="real training instead of the canary")
    parser.add_argument("--page", default="chaos-200", help="name of the report")
    parser.add_argument("--into", type=Path, default=DOCS, help="folder of the report")
    given = parser.parse_args()
    lacking = hosts_support.missing() or missing_for_radosgw()
    if lacking:
        print(f"chaos: several hosts on one machine: {lacking}", file=sys.stderr)
        return 3
    end_tidily()
    given.into.mkdir(parents=True, exist_ok=True)
    kinds = yaml.safe_load(given.plan).get("kinds", KINDS)
    count = given.count if given.each is None else given.each * len(kinds)
    if count < given.sets or (given.each is not None and given.each % given.sets):
        print(f"chaos: {count} faults cannot be shared by {given.sets} sets of hosts", file=sys.stderr)
        return 2
    try:
        return one_set(given, count) if given.sets == 1 else side_by_side(given, count)
    except KeyboardInterrupt:
        print("chaos: ended before all faults had come", file=sys.stderr)
        return 130


def one_set(given: argparse.Namespace, count: int) -> int:
    """A campaign on three hosts. Its report is kept however it ends."""
    with lone_hosts(3, lease_s=LEASE_S, memory=_STORE_BYTES) as cluster:
        canary: dict[str, Any] = {"nodes": 2, "steps": 80, "commit_every": 10, "credentials": cluster.credentials}
        if given.training:
            canary = training(cluster, steps=_OUTLASTING, hang_s=_HANG_S)
        report = cluster.folder / f"{given.page}.md"
        plan = {"seed": given.seed, "count": count, "canary": canary, "pause_s": 6.0, **yaml.safe_load(given.plan)}
        try:
            return run(cluster, report, timeout_s=48 * 3600, shown=True, **plan).returncode
        finally:
            for page in report.parent.glob(f"{given.page}.*"):
                shutil.copy(page, given.into)


def side_by_side(given: argparse.Namespace, count: int) -> int:
    """The faults shared out among sets of hosts that run at the same time; one report of all, however they end."""
    with tempfile.TemporaryDirectory(prefix="rexchaos", dir="/var/tmp") as name:
        sets: list[tuple[Path, subprocess.Popen[bytes]]] = []
        try:
            for number in range(given.sets):
                folder = Path(name, str(number))
                folder.mkdir()
                share = [f"--count={(count + number) // given.sets}", f"--seed={given.seed + number}"]
                what = [f"--plan={given.plan}", *(["--training"] if given.training else [])]
                where = [f"--page={given.page}", f"--into={folder}"]
                words = [sys.executable, "-m", "tests.campaigns.hosts", *share, *what, *where]
                # A group of its own: a Ctrl-C reaches it once, through us.
                sets.append((folder, subprocess.Popen(apart(words, folder), start_new_session=True)))
            codes = [process.wait() for _, process in sets]
        finally:
            for _, process in sets:
                process.terminate()  # what is over does not mind
            for _, process in sets:
                process.wait()
            found = [one for folder, _ in sets if (one := read(folder / f"{given.page}.md")) is not None]
            if found:
                write(merged(found, given.sets), given.into / f"{given.page}.md")
    return 1 if any(codes) or len(found) < given.sets else 0


def merged(found: Sequence[Findings], sets: int) -> Findings:
    """The findings of campaigns on sets of hosts, as those of one. One that left none makes it one that is not over."""
    ends = [one.at_the_end for one in found if one.at_the_end is not None]
    return Findings(
        trials=tuple(trial for one in found for trial in one.trials),
        where=f"{sets} times {found[0].where} side by side",
        when=found[-1].when,
        code=" and ".join(sorted({one.code for one in found})),
        plan=found[0].plan,
        unjudged=tuple(job for one in found for job in one.unjudged),
        at_the_end=tuple(left for end in ends for left in end) if len(ends) == sets else None,
    )


if __name__ == "__main__":
    sys.exit(main())
