"""Doing a fault: on a node through Ray, on the control plane by its record, elsewhere by the plan's commands."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.gang import Gangs
from cluster.node.processes import is_alive, started_at
from jobs.errors import SpecError
from orchestrator.chaos.plan import KINDS, Fault, Plan
from orchestrator.stack import Stack
from orchestrator.store import AttemptRow

_COMMAND_S = 180.0  # booting a host takes its time
_SECOND_S = 1.0
_RAYS_PATIENCE_S = 10.0  # with a node that says nothing; one that was stopped for longer it calls dead
_BLINK_SHARE = 4  # of a lease: TCP is back within twice a blink, and nobody's lease should notice


class Strikes:
    """Strikes, and undoes."""

    def __init__(self, plan: Plan, gangs: Gangs, stack: Stack) -> None:
        self.plan, self.gangs, self.stack = plan, gangs, stack
        self._undoing: list[threading.Thread] = []
        self._hurry = threading.Event()
        self._not_undone: list[str] = []

    def strike(self, fault: Fault, attempt: AttemptRow, view: dict[str, Any]) -> dict[str, Any] | None:
        """Do it; what was struck and when, None if there was nothing to strike any more."""
        kind = KINDS[fault.kind]
        if kind.where == "node":
            return self._on_a_node(fault, attempt, view)
        if kind.where == "control":
            return self._on_the_control_plane(fault)
        if kind.where == "host":
            return self._on_a_host(fault, attempt)
        name = fault.kind.removeprefix("stop_")
        try:
            self._run(f"stop_{name}")
        finally:  # an end of the campaign in between leaves nothing struck
            self._later(self.plan.pause_s, lambda: self._run(f"start_{name}"))
        return {"what": name, "at": time.time()}

    def mend(self, *, at_once: bool = False) -> list[str]:
        """Wait until everything that was done has been undone, in its time or at once; returns what could not be."""
        if at_once:
            self._hurry.set()
        for thread in self._undoing:
            thread.join()
        self._undoing.clear()
        self._hurry.clear()
        problems, self._not_undone = self._not_undone, []
        return problems

    def _on_a_node(self, fault: Fault, attempt: AttemptRow, view: dict[str, Any]) -> dict[str, Any] | None:
        how, _, victim = fault.kind.partition("_")
        ranks = [
            rank
            for rank, node in enumerate(attempt.nodes)
            if fault.kind != "kill_ray_node" or node["host"] not in self.plan.spare
        ]
        if not ranks:
            return None
        # msrun's scheduler is on the first node alone.
        rank = 0 if victim == "scheduler" else ranks[int(fault.pick * len(ranks))]
        node = attempt.nodes[rank]
        if fault.kind == "fill_disk":
            struck: dict[str, Any] | None = self.gangs.on_node(
                node["id"], "fill_disk", self.stack.home.work_root, self.plan.pause_s
            )
            self._later(self.plan.pause_s + _SECOND_S, lambda: None)  # undone there, by then
        else:
            agent = next((seen["agent"] for seen in view["nodes"] if seen["node_rank"] == rank), None)
            pause_s = self.plan.pause_s + (self.stack.home.settings.lease_s if KINDS[fault.kind].patient else 0.0)
            if fault.kind == "stop_ray_node":
                pause_s = min(pause_s, _RAYS_PATIENCE_S)
            struck = self.gangs.on_node(node["id"], "strike", how, victim, attempt.token, agent, pause_s)
        if struck is not None and fault.kind == "kill_ray_node":
            self._later(self.plan.pause_s, lambda: self._run("start_ray_node", node))
        return None if struck is None else {"what": victim, "host": node["host"], **struck}

    def _on_the_control_plane(self, fault: Fault) -> dict[str, Any] | None:
        how, _, victim = fault.kind.partition("_")
        service = self.stack.service("control")
        if service is None:
            return None
        # The keeper, and the process that serves and speaks to Ray: its only child.
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        victims = [int(child) for child in children[:1]]
        if victim == "control_plane":
            victims.insert(0, service.pid)
        if not victims:
            return None
        born = {pid: started_at(pid) for pid in victims}
        away_s = self.stack.home.settings.lease_s + self.plan.pause_s
        try:
            for pid in victims:
                with suppress(ProcessLookupError):  # the child goes with its keeper
                    os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        finally:
            if how == "stop":
                self._later(away_s, lambda: _go_on(born))
            elif victim == "control_plane":
                self._later(away_s, self.stack.up)
        return {"what": victim, "pid": victims[0], "at": time.time()}

    def _on_a_host(self, fault: Fault, attempt: AttemptRow) -> dict[str, Any] | None:
        hit = [node for node in attempt.nodes if node["host"] not in self.plan.spare]
        if not hit:
            return None
        node = hit[int(fault.pick * len(hit))]
        lease_s = self.stack.home.settings.lease_s
        first, then, pause_s = {
            "blink_network": ("cut", "heal", lease_s / _BLINK_SHARE),
            "cut_network": ("cut", "heal", lease_s + self.plan.pause_s),
            "slow_network": ("slow", "heal", self.plan.pause_s),
            "power_off": ("power_off", "power_on", lease_s + self.plan.pause_s),
        }[fault.kind]
        try:
            self._run(first, node)
        finally:
            self._later(pause_s, lambda: self._run(then, node))
        return {"what": first, "host": node["host"], "at": time.time()}

    def _run(self, name: str, node: dict[str, Any] | None = None) -> None:
        """One of the plan's commands; SpecError if it fails, since what follows would judge something else."""
        node = node or {}
        words = [
            word.replace("{host}", node.get("host", "")).replace("{address}", node.get("address", ""))
            for word in self.plan.commands[name]
        ]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise SpecError(f"chaos plan: commands.{name} had not ended after {_COMMAND_S:g} s") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise SpecError(f"chaos plan: commands.{name} ended with {done.returncode}: {said[-1] if said else ''}")

    def _later(self, wait_s: float, undo: Callable[[], object]) -> None:
        def run() -> None:
            self._hurry.wait(wait_s)
            try:
                undo()
            except Exception as error:  # the campaign's thread tells of it
                self._not_undone.append(f"not undone: {error}")

        thread = threading.Thread(target=run, name="undo")
        thread.start()
        self._undoing.append(thread)


def _go_on(born: dict[int, int | None]) -> None:
    """SIGCONT to these processes, if they still are the ones that began then."""
    for pid, since in born.items():
        if is_alive(pid) and started_at(pid) == since:
            os.kill(pid, signal.SIGCONT)
