"""The training program: one rank of it.

    msrun --worker_num 2 --local_worker_num 2 --join=True rexnet/train.py --config quickstart --data_dir DIR
    python -m rexnet.train --config quickstart --data_dir DIR --distribute False

Any key of the recipe may follow as `--key value`; with `--dry-run` the program says what it would do and ends. Exit
codes are those of `jobs.contract.Exit`; SIGTERM makes all ranks stop after one and the same step, with a committed
checkpoint.
"""

# ruff: noqa: E402  SIGTERM is taken before anything slow is imported
from __future__ import annotations

import signal
import sys
import tempfile
import time

_TERM_AT: list[tuple[float, float]] = []
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: _TERM_AT.append((time.time(), time.monotonic())))
    if not __package__:  # run by its path: our parent, not our folder, belongs on the module path
        from pathlib import Path

        sys.path[0] = str(Path(__file__).resolve().parent.parent)

import logging
import os
import traceback
from pathlib import Path

from jobs.contract import ENV_LOCAL_RANKS, ENV_REPORT_DIR, Exit, Phase, dump_stacks_on_request
from jobs.errors import AlreadyExistsError, FencedError, IntegrityError, RexError, StoreUnavailable, UserError
from rexnet.graphs import GraphCache
from rexnet.program import read_command_line
from rexnet.pulse import Pulse
from rexnet.recipe import Recipe
from rexnet.world import StopRequest, World, find_world, pin

log = logging.getLogger("rexnet.train")


def exit_code(error: BaseException) -> Exit | int:
    """What an error means to whoever started us."""
    if isinstance(error, UserError):
        return Exit.CONFIG
    if isinstance(error, StoreUnavailable):
        return Exit.INFRASTRUCTURE
    if isinstance(error, FencedError | IntegrityError | AlreadyExistsError):
        return Exit.NO_REQUEUE
    return 1


def run_scheduler() -> int:
    """msrun's own process, which holds the cluster together and trains nothing; returns when the workers are done."""
    from mindspore.communication import init

    init()
    return Exit.DONE


def run_rank(recipe: Recipe, world: World, stop: StopRequest, pulse: Pulse, graphs: GraphCache) -> int:
    """Train; returns DONE or DRAINED. Errors are raised."""
    from rexnet.session import Session  # imports MindSpore: CPUs are pinned and SIGTERM is taken by now

    with Session(recipe, world, stop, pulse, graphs) as session:
        all_stop = session.owes_validation and not session.catch_up()
        while session.step < session.total_steps and not all_stop:
            loss, all_stop = session.train_step()
            session.record(loss)
            if session.validation_is_due:
                all_stop = not session.validate()  # it asks anew: whoever was to stop before it still is
            if session.epoch_is_over and not session.owes_validation:
                session.keep_weights()
            if session.checkpoint_is_due:
                session.checkpoint()
        if all_stop:
            session.drain()
            return Exit.DRAINED
        session.complete()
    return Exit.DONE


def main(arguments: list[str]) -> int:
    """Run one rank and leave its report."""
    if {"--dry-run", "--dry_run"} & set(arguments):
        from rexnet.dryrun import main as describe

        return describe(arguments)
    stop = StopRequest().install()
    if _TERM_AT:
        stop.take(*_TERM_AT[0])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO, stream=sys.stderr)
    pulse = Pulse(int(os.environ.get("RANK_ID", "0")) if os.environ.get("MS_ROLE") != "MS_SCHED" else -1)
    if pulse.now.rank >= 0:
        dump_stacks_on_request(pulse.now.rank)
    graphs: GraphCache | None = None
    reason = ""
    try:
        recipe = read_command_line(arguments, switches=()).recipe
        world = find_world(os.environ, os.sched_getaffinity(0), distribute=recipe.distribute)
        if world.is_scheduler:
            return run_scheduler()
        pulse.enter(Phase.STARTING)
        if "TMPDIR" not in os.environ:
            tempfile.tempdir = str(Path.cwd())  # what a killed rank leaves goes with its attempt's folder
        pin(world)
        graphs = GraphCache(os.environ, recipe, world, program="train")
        code = run_rank(recipe, world, stop, pulse, graphs)
        reason = f"{'drained' if code == Exit.DRAINED else 'done'} at step {pulse.now.step}"
        return code
    except RexError as error:
        reason = str(error)
        print(f"rexnet.train: {error}", file=sys.stderr, flush=True)
        code = exit_code(error)
        if code == 1:
            traceback.print_exc()
        return code
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        if pulse.now.rank >= 0:
            pulse.report(reason)
        if graphs is not None:
            graphs.close()


def leave(code: int) -> None:
    """End the process; at once where all ranks are on this node and a supervisor ends msrun's scheduler for us.

    All is committed and said by then, and MindSpore takes four seconds to dissolve its cluster. Under a bare msrun its
    scheduler waits for that, and so do we.
    """
    alone = os.environ.get(ENV_LOCAL_RANKS) == os.environ.get("MS_WORKER_NUM")
    if ENV_REPORT_DIR in os.environ and alone and code in (Exit.DONE, Exit.DRAINED):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
