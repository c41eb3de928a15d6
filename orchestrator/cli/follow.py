"""Following a job to its end: a live panel on a terminal, plain lines elsewhere. Reads the store only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from jobs.budgets import Cause
from jobs.errors import ConflictError
from jobs.states import State, StopRequested
from orchestrator.cli.common import say
from orchestrator.cli.summary import cause_and_kind
from orchestrator.store.flags import READY
from orchestrator.view import LOOP_SILENT_S, job_view

if TYPE_CHECKING:
    from orchestrator.stack import Stack
    from orchestrator.store import Store

_REFRESH_S = 0.5
_LINE_S = 5.0  # between two progress lines where nothing else happens
_TRACKING_S = 60.0  # how long the end waits for MLflow to be completed

_TELLING = (
    "gang_granted",
    "workers_reported",
    "resumed",
    "checkpoint_quarantined",
    "preempt_requested",
    "cancel_requested",
    "attempt_ended",
    "backoff_elapsed",
    "tracking_unavailable",
    "unreachable",
    "node_lost",
    "time_limit",
    "start_timeout",
    "teardown_incomplete",
    "teardown_complete",
)


def progress_line(view: dict[str, Any]) -> str:
    """`running, attempt 2, training, step 120 of 360, 55.1 images/s, loss 0.512, checkpoint at step 100`"""
    progress = view["progress"]
    parts = [view["state"], f"attempt {len(view['attempts'])}"]
    if view["waiting"]:
        parts.append(view["waiting"])
    if view["stopping_for"]:
        parts.append(f"draining ({view['stopping_for']})")
    if progress["phase"] and view["state"] == "running":
        parts.append(progress["phase"])
    if progress["step"]:
        of = f" of {progress['total_steps']}" if progress["total_steps"] else ""
        parts.append(f"step {progress['step']}{of}")
    if progress["images_per_s"]:
        parts.append(f"{progress['images_per_s']:.1f} images/s")
    if progress["loss"] is not None:
        parts.append(f"loss {progress['loss']:.4f}")
    if view["metrics"]["top1"] is not None:
        parts.append(f"top-1 {view['metrics']['top1']:.4f}")
    if view["checkpoint"]:
        parts.append(f"checkpoint at step {view['checkpoint']['step']}")
    if view["unreachable_since"]:
        parts.append("unreachable (left as it is)")
    return ", ".join(parts)


def event_line(entry: Any) -> str:
    """One event in words."""
    detail = entry["detail"]
    attempt = f"attempt {entry['attempt']}: " if entry["attempt"] else ""
    words = entry["action"].replace("_", " ")
    if entry["action"] == "attempt_ended":
        words = f"ended at step {detail['to_step']}: {cause_and_kind(detail['cause'], detail.get('kind'))}"
        if detail["detail"]:
            words += f" ({detail['detail']})"
    elif entry["action"] == "resumed":
        words = (
            f"resumes at step {detail['step']} from {detail['manifest']}" if detail["manifest"] else "starts from zero"
        )
    elif entry["action"] == "checkpoint_quarantined":
        words = "; ".join(f"quarantined {q['manifest']}: {q['reason']}" for q in detail["quarantined"])
    elif detail:
        shown = [f"{key}: {_short(value)}" for key, value in detail.items() if value or type(value) is int]
        words += f" ({', '.join(shown)})" if shown else ""
    return f"{attempt}{words}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("manifest", value))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


class _Lines:
    """Plain lines: every telling event at once, progress every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.last, self.last_at = out, "", 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def event(self, entry: Any) -> None:
        print(event_line(entry), file=self.out, flush=True)

    def show(self, view: dict[str, Any]) -> None:
        line = progress_line(view)
        if line != self.last and time.monotonic() - self.last_at >= _LINE_S:
            self.last, self.last_at = line, time.monotonic()
            print(line, file=self.out, flush=True)


class _Panel:
    """A live panel under the events that have scrolled by."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=out, highlight=False)
        self.live = Live(console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> _Panel:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def event(self, entry: Any) -> None:
        self.console.print(event_line(entry), markup=False)

    def show(self, view: dict[str, Any]) -> None:
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        progress = view["progress"]
        grid = Table.grid(padding=(0, 2))
        state = view["state"] + (f", draining ({view['stopping_for']})" if view["stopping_for"] else "")
        grid.add_row(
            "state", f"{state}, attempt {len(view['attempts'])}" + (f": {view['waiting']}" if view["waiting"] else "")
        )
        total = progress["total_steps"] or 0
        grid.add_row("step", f"{progress['step']} of {total or '?'}  {progress['phase'] or ''}")
        if total:
            grid.add_row("", ProgressBar(total=total, completed=progress["step"], width=48))
        speed = f"{progress['images_per_s']:.1f} images/s" if progress["images_per_s"] else "-"
        loss = f"{progress['loss']:.4f}" if progress["loss"] is not None else "-"
        top1 = f"{view['metrics']['top1']:.4f}" if view["metrics"]["top1"] is not None else "-"
        grid.add_row("speed", f"{speed}   loss {loss}   top-1 {top1}")
        checkpoint = view["checkpoint"]
        grid.add_row(
            "checkpoint", f"step {checkpoint['step']}  {checkpoint['sha256'][:12]}" if checkpoint else "none yet"
        )
        self.live.update(Panel(grid, title=view["job_id"], expand=False))


def follow(
    store: Store,
    job_id: str,
    stack: Stack,
    *,
    out: TextIO,
    each: Callable[[dict[str, Any]], None] = lambda view: None,
) -> State:
    """Show the job until it is final and its tracking is complete; returns its state.

    Ctrl-C asks for the job's cancellation and keeps following; a second one stops following only. `each` is called
    with every view.
    """
    seen, cancelled, warned = 0, False, False
    with _Panel(out) if out.isatty() else _Lines(out) as screen:
        while True:
            try:
                for entry in store.events(job_id, after=seen):
                    seen = entry["id"]
                    if entry["action"] in _TELLING:
                        screen.event(entry)
                view = job_view(store, job_id, mlflow_uri=stack.mlflow_uri)
                screen.show(view)
                warned = _warn_if_silent(store, warned)
                each(view)
                if State(view["state"]).final:
                    break
                time.sleep(_REFRESH_S)
            except KeyboardInterrupt:
                if cancelled:
                    say(f"no longer following; `rexctl run --attach {job_id}` does again")
                    raise
                cancelled = True
                _cancel(store, job_id)
        _await_tracking(store, job_id)
    return State(view["state"])


def _warn_if_silent(store: Store, warned: bool) -> bool:
    """Say once when the control plane has not been heard of for long; returns whether it is silent."""
    silent = time.time() - float(store.flag(READY) or 0.0) > LOOP_SILENT_S
    if silent and not warned:
        say("the control plane is silent; `rexctl up` starts it if it is gone, running jobs are not affected")
    return silent


def _cancel(store: Store, job_id: str) -> None:
    say("cancelling, with a checkpoint; Ctrl-C again to stop watching")
    stop = StopRequested(cause=Cause.CANCELLED, detail="Ctrl-C")
    try:
        store.request(job_id, stop, action="cancel_requested", detail={"by": "Ctrl-C"})
    except ConflictError:
        return  # it has just ended by itself


def _await_tracking(store: Store, job_id: str) -> None:
    """The job is over; give its last effects (gang released, MLflow completed) a moment."""
    deadline = time.monotonic() + _TRACKING_S
    while pending := store.pending_effects(job_id):
        if time.monotonic() > deadline:
            say(f"still pending: {', '.join(effect.effect.value for effect in pending)}; the control plane goes on")
            return
        time.sleep(0.2)
