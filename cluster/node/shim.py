"""The rank shim: msrun starts it in the place of the program; it runs the program and tells the truth about its end.

msrun kills its other workers within a second of the first non-zero exit and then exits 1 whatever the code was. So
the shim records code, signal and reason, and turns a drained program (75) into 0, which makes msrun wait for the
others. It dies with msrun, and the program dies with it.

Run as a script: python shim.py module NAME ARGS... | script PATH ARGS...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

# msrun runs this file by its path, which puts our folder, not the packages' parent, on the module path.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from cluster.node.processes import die_with_parent, start_afresh  # noqa: E402
from cluster.outcome.last_words import NOT_STARTED, OomCount, last_words, own_output  # noqa: E402
from jobs.contract import ENV_REPORT_DIR, Exit, HeartbeatSender, Outcome, Report, checked_heartbeat  # noqa: E402

_TRIES = 200  # over ten seconds


def command(arguments: list[str]) -> list[str]:
    """The interpreter's command line for `module NAME ARGS...` or `script PATH ARGS...`."""
    kind, name, *rest = arguments
    return [sys.executable, "-m", name, *rest] if kind == "module" else [sys.executable, name, *rest]


def outcome_of(rank: int, child: subprocess.Popen[bytes], directory: Path | None, before: OomCount) -> Outcome:
    """What is known of the ended child: its status from the kernel, its own words from its report or its output."""
    status = child.returncode
    reason, beat, tail, oom = "", None, "", None
    if directory is not None:
        try:
            report = Report.from_json((directory / f"rank_{rank}.json").read_text())
            reason, beat = str(report.reason), checked_heartbeat(report.heartbeat)
        except FileNotFoundError:
            pass  # not every program leaves one
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"its report cannot be read: {error!r}"  # the program wrote it; how it ended counts all the same
    if status not in (Exit.DONE, Exit.DRAINED):
        telling, tail = last_words(own_output())
        reason, oom = reason or telling, OomCount.now().since(before)
    return Outcome(
        rank=rank,
        pid=child.pid,
        code=status if status >= 0 else None,
        signal=-status if status < 0 else None,
        reason=reason,
        tail=tail,
        oom=oom,
        heartbeat=beat,
        at=time.time(),
    )


def run(rank: int, directory: Path | None, sender: HeartbeatSender) -> Outcome:
    """Run the program to its end, and pass SIGTERM on to it. OSError if it cannot be started."""
    child: subprocess.Popen[bytes] | None = None
    asked = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if child is not None and child.poll() is None:
            child.send_signal(number)

    # Before the child exists, so that a stop is never lost between the two.
    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = OomCount.now()
    child = subprocess.Popen(command(sys.argv[1:]), preexec_fn=start_afresh)  # noqa: PLW1509 - one thread
    if asked:
        child.send_signal(signal.SIGTERM)
    hello = {"rank": rank, "pid": os.getpid(), "child": child.pid}
    insist(sender, "hello", hello)  # without it we would not be told to drain
    child.wait()
    return outcome_of(rank, child, directory, before)


def insist(sender: HeartbeatSender, kind: str, record: Outcome | dict[str, Any]) -> None:
    """Send what counts. The socket takes ten datagrams, and its reader may be slow."""
    for _ in range(_TRIES):
        if not sender.wanted or sender.send(kind, record):
            return
        time.sleep(0.05)


def leave_outcome(outcome: Outcome, directory: Path | None, sender: HeartbeatSender) -> None:
    """Write how it ended, then say it. One of both arrives: the supervisor looks at the disk, too."""
    target = directory / f"outcome_{outcome.rank}.json" if directory else None
    if target is not None:
        temporary = target.with_suffix(".tmp")
        try:
            temporary.write_text(outcome.to_json())
            os.replace(temporary, target)
        except OSError as error:  # the disk is full: it is sent all the same
            told = replace(outcome, reason=f"{outcome.reason} (and its record could not be written: {error})")
            return insist(sender, "outcome", told)
    sender.send("outcome", outcome)
    return None


def main() -> int:
    """Run the program; returns what msrun is to see."""
    is_scheduler = os.environ.get("MS_ROLE") == "MS_SCHED"
    rank = -1 if is_scheduler else int(os.environ.get("RANK_ID", "0"))
    directory = Path(os.environ[ENV_REPORT_DIR]) if os.environ.get(ENV_REPORT_DIR) else None
    sender = HeartbeatSender()
    try:
        die_with_parent()
        outcome = run(rank, directory, sender)
    except Exception as error:  # whatever it was is to be told: without an outcome nobody knows that a rank is missing
        with suppress(OSError):  # of a full disk
            traceback.print_exc()
        outcome = Outcome(
            rank=rank,
            pid=os.getpid(),
            # No memory for another process, or no more of them: that is the node's lack, not the program's.
            code=int(Exit.INFRASTRUCTURE) if isinstance(error, OSError) else 1,
            signal=None,
            reason=f"{NOT_STARTED}: {type(error).__name__}: {error}",
            at=time.time(),
        )
    leave_outcome(outcome, directory, sender)
    if outcome.signal is not None:
        return 128 + outcome.signal
    return int(Exit.DONE) if outcome.code == Exit.DRAINED else int(outcome.code or 0)


if __name__ == "__main__":
    sys.exit(main())
