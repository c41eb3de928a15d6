"""From `submit` on a warm cluster to the first step, beside a bare msrun of the same program by hand.

On this machine with its own Ray node: a program that does nothing, and real training with its compiled graphs at hand.
And over two hosts, which here share its CPUs: what each host's agent, supervisor and shim do at the same time adds up.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks import bare
from benchmarks.hosts import CANARY_BY_HAND
from benchmarks.pairs import Result, in_turn
from jobs import contract
from orchestrator.store import Store
from rexnet.data.digits import write_digits
from tests.support import hosts as hosts_support
from tests.support.radosgw import missing_for_radosgw
from tests.support.ray_hosts import lone_hosts
from tests.support.rex import COUNTING, Rex, counting_spec

LIMIT_S = 2.0  # more than by hand
_IDLE_S = 4.0  # what the run before leaves to be done is done by then
_TRAINING = ("--config=quickstart", "--image_resize=16", "--batch_size=16", "--global_batch=32", "--max_steps=3")


def run() -> list[Result]:
    return [*on_one_machine(), *over_two_hosts()]


def on_one_machine() -> list[Result]:
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="rex") as name, local_stack(Path(name, "home")) as rex:
        folder = Path(name)

        def submitted(spec: Path) -> Callable[[], float]:
            def measure() -> float:
                time.sleep(_IDLE_S)
                began = time.time()
                job = rex.submit(spec)
                rex.finish(job)
                return first_step_at(rex.store, job) - began

            return measure

        def by_hand(*program: str, **env: str) -> Callable[[], float]:
            def measure() -> float:
                time.sleep(_IDLE_S)
                return bare.on_this_machine(folder / f"bare-{next(numbers)}", program, env=env)

            return measure

        nothing = in_turn(
            submitted(counting_spec(folder / "job.yaml", "--steps", 3)), by_hand(COUNTING, "--steps", "3")
        )
        write_digits(folder / "digits")
        script = folder / "train.py"  # msrun takes no module
        script.write_text("import runpy\n\nrunpy.run_module('rexnet.train', run_name='__main__')\n")
        train = by_hand(
            *(str(script), *_TRAINING),
            **{
                contract.ENV_DATA_DIR: str(folder / "digits"),
                contract.ENV_COMPILE_CACHE: str(folder / "compile-cache"),
                "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            },
        )
        training = in_turn(submitted(training_spec(folder / "training.yaml")), train)
    said = "process start of `rexctl submit` to the end of the first step, 2 workers"
    return [
        beside("submit to first step", "msrun by hand", nothing, f"{said}, no MindSpore in the program"),
        beside("submit to first step of training", "msrun by hand", training, f"{said}, warm compile caches"),
    ]


@contextmanager
def local_stack(home: Path) -> Iterator[Rex]:
    rex = Rex(home)
    try:
        if (up := rex("up")).returncode != 0:
            raise RuntimeError(up.stderr)
        yield rex
    finally:
        rex("down", "--now")


def training_spec(path: Path) -> Path:
    spec: dict[str, Any] = {
        "name": "training",
        "gang": {"nodes": 1, "workers_per_node": 2},
        "program": {"module": "rexnet.train", "args": list(_TRAINING)},
        "data": {"builtin": "digits"},
    }
    path.write_text(yaml.safe_dump(spec))
    return path


def first_step_at(store: Store, job: str) -> float:
    attempt = store.attempts(job)[0]
    if attempt.first_step_at is None:
        raise RuntimeError(f"{job} made no step: {attempt.detail}")
    return attempt.first_step_at


def beside(name: str, peer: str, pairs: tuple[tuple[float, float], ...], note: str) -> Result:
    extra_s = statistics.median(ours - theirs for ours, theirs in pairs)
    limit = f"at most {LIMIT_S:g} s more by the median; {note}"
    return Result(name=name, peer=peer, pairs=pairs, note=limit, kept=extra_s <= LIMIT_S)


def over_two_hosts() -> list[Result]:
    lacking = hosts_support.missing() or missing_for_radosgw()
    if lacking:
        print(f"not run: several hosts on one machine: {lacking}", file=sys.stderr)
        return []
    with lone_hosts(2) as cluster:
        numbers = itertools.count()

        def submitted() -> float:
            time.sleep(_IDLE_S)
            began = time.time()
            job = cluster.submit_canary("--steps", 3, "--step_s", 0.1, nodes=2)
            cluster.finish(job)
            return first_step_at(Store(cluster.home.database_url), job) - began

        def by_hand() -> float:
            time.sleep(_IDLE_S)
            return bare.over_two_hosts(cluster, f"bare-{next(numbers)}", CANARY_BY_HAND)

        pairs = in_turn(submitted, by_hand)
    note = "as above, with the canary; both hosts, their msruns and ours share this machine's CPUs"
    return [beside("submit to first step, 2 hosts", "msrun by hand on both", pairs, note)]
