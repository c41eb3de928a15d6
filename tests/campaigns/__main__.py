"""`make campaigns [ARGS="--damage 200 --kills 50"]`: all of them on a directory and on a real radosgw; the report."""

from __future__ import annotations

import argparse
import collections
import os
import platform
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.storage import open_store
from tests.campaigns import damage, kills
from tests.conformance.backends import aws_environment, make_bucket
from tests.support.radosgw import ACCESS_KEY, SECRET_KEY, RadosGateway, missing_for_radosgw
from tests.support.signals import end_tidily

PAGE = Path(__file__).parents[2] / "docs" / "campaigns.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make campaigns", description=__doc__)
    parser.add_argument("--damage", type=int, default=200, help="cases on each store (default 200)")
    parser.add_argument("--kills", type=int, default=50, help="kills of writer and of collector on each store")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    missing = missing_for_radosgw()
    if missing:
        print(f"campaigns: radosgw is needed: {missing}", file=sys.stderr)
        return 3
    end_tidily()
    rows, bad = [], 0
    for name, fresh, environment in stores():
        for row, failures in (
            _damaged(name, fresh, range(options.seed, options.seed + options.damage)),
            *(_kills(name, what, fresh, environment, range(options.seed, options.seed + options.kills))
              for what in ("write", "collect")),
        ):  # fmt: skip
            rows.append(row)
            bad += failures
            print(row, flush=True)
    PAGE.write_text(_page(rows, options))
    return 1 if bad else 0


def stores() -> Iterator[tuple[str, Callable[[], str], Mapping[str, str]]]:
    """(name, maker of URIs of empty stores, environment of a process that opens them), the server running meanwhile."""
    with tempfile.TemporaryDirectory(prefix="rex-campaign-") as folder:
        yield "directory", lambda: f"file://{folder}/{uuid.uuid4().hex}", os.environ
    with radosgw() as environment:
        bucket = f"b{uuid.uuid4().hex[:12]}"
        make_bucket(bucket)
        yield "radosgw", lambda: f"s3://{bucket}/{uuid.uuid4().hex}", {**os.environ, **environment}


@contextmanager
def radosgw() -> Iterator[Mapping[str, str]]:
    with tempfile.TemporaryDirectory(prefix="rex-rgw-") as folder:
        server = RadosGateway(Path(folder))
        try:
            server.start()
            environment = aws_environment(server.endpoint, ACCESS_KEY, SECRET_KEY)
            os.environ.pop("AWS_PROFILE", None)
            os.environ.update(environment)
            yield environment
        finally:
            server.stop()


def _damaged(name: str, fresh: Callable[[], str], seeds: range) -> tuple[str, int]:
    cases = [damage.run_case(open_store(fresh()), seed) for seed in seeds]
    for case in cases:
        if not case.detected or case.wrong_resume:
            print(f"FAILED on {name}: {case}", file=sys.stderr)
    detected, wrong = sum(case.detected for case in cases), sum(case.wrong_resume for case in cases)
    kinds = collections.Counter(case.kind for case in cases)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    row = f"| damage ({said}) | {name} | {len(cases)} | {detected} detected, {wrong} wrong resumes |"
    return row, len(cases) - detected + wrong


def _kills(
    name: str, what: str, fresh: Callable[[], str], environment: Mapping[str, str], seeds: range
) -> tuple[str, int]:
    kill = {"write": kills.writer_killed, "collect": kills.collector_killed}[what]
    usual_s = kills.usual_seconds(what, fresh, environment)
    found = [kill(fresh(), environment, seed, usual_s) for seed in seeds]
    for one in found:
        if one.problem:
            print(f"FAILED on {name}: {one}", file=sys.stderr)
    bad = sum(bool(one.problem) for one in found)
    newest = collections.Counter(one.newest for one in found)
    late = sum(one.survived for one in found)
    after = f"newest is the old one {newest['old']} times, the new one {newest['new']} times" if what == "write" else (
        "the newest is whole, the next collection finishes")  # fmt: skip
    victim = {"write": "writer", "collect": "collector"}[what]
    row = f"| {victim} killed within {usual_s:.2f} s of work | {name} | {len(found)} | {after}; {bad} problems; "
    return f"{row}{late} were done before the kill |", bad


def _page(rows: list[str], options: argparse.Namespace) -> str:
    return f"""# Campaigns against the checkpoint chain

Written by `make campaigns` on {time.strftime("%Y-%m-%d", time.gmtime())}, Python {platform.python_version()}, \
{os.cpu_count()} CPUs; seeds from {options.seed}. What each does: `tests/campaigns/`.

| campaign | store | cases | outcome |
| --- | --- | --- | --- |
{chr(10).join(rows)}

*Detected*: verification names every checkpoint that the damage touches and no other, and the next attempt quarantines
those on its way. *Wrong resume*: it started from anything but the newest checkpoint that is whole. After each kill the
newest checkpoint is read back, the next attempt starts from it without quarantining anything, and a collection after
its end leaves no object and no unfinished upload that no manifest names.
"""


if __name__ == "__main__":
    sys.exit(main())
