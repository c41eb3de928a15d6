"""Carrying out what transitions ask for. Each effect is idempotent and keyed by (job, attempt).

Effects of one job run in their order, those of different jobs side by side; one that meets a part that does not
answer is tried again later and changes nothing meanwhile.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict
from typing import Protocol

from cluster.gang import Gangs
from cluster.launch import LaunchPlan
from jobs import contract
from jobs.errors import ClusterUnreachable, RetryableError
from jobs.spec import JobSpec
from jobs.states import Effect
from orchestrator.settings import Home
from orchestrator.store import AttemptRow, JobRow, PendingEffect, Store

_LOG = logging.getLogger("rexctl.effects")
_SWEPT_AGAIN = 8  # attempts that ended with a lost node, whose leftovers the next one looks for
_TRACKING_S = 5.0  # for MLflow to tell a launch its run
_RETRY_S = (0.5, 1, 2, 5, 10, 30)


class Tracking(Protocol):
    """What effects need of MLflow; `orchestrator.control.tracking.Tracking` is the real one."""

    uri: str

    def ensure_run(self, row: JobRow) -> str: ...

    def close(self, row: JobRow) -> None: ...


def data_arguments(spec: JobSpec, work_root: str) -> tuple[str | None, tuple[str, ...]]:
    """The data folder on every node, and the command that makes it there (python's arguments), if one is needed."""
    if spec.data.builtin is not None:
        folder = f"{work_root}/data/{spec.data.builtin}"
        return folder, ("-m", f"rexnet.data.{spec.data.builtin}", folder)
    return spec.data.dir, ()


def build_launch(
    row: JobRow,
    attempt: AttemptRow,
    home: Home,
    *,
    tracking_uri: str,
    mlflow_run: str | None,
    earlier_tokens: tuple[str, ...] = (),
    code: str = "",
) -> LaunchPlan:
    """The launch plan of an attempt: everything the nodes need, and no secret."""
    spec = row.spec
    data_dir, prepare = data_arguments(spec, home.work_root)
    env = dict(spec.env)
    env[contract.ENV_STORE] = row.store_uri
    env[contract.ENV_COMMIT_PROTOCOL] = row.commit_protocol
    env["MLFLOW_TRACKING_URI"] = tracking_uri
    env[contract.ENV_COMPILE_CACHE] = f"{home.work_root}/compile-cache"  # shared: its keys hold what shapes a graph
    if mlflow_run:
        env[contract.ENV_MLFLOW_RUN] = mlflow_run
    if data_dir:
        env[contract.ENV_DATA_DIR] = data_dir
    if row.checkpoint:
        env[contract.ENV_MUST_RESUME] = row.checkpoint["manifest"]
    elif row.init_from:
        env[contract.ENV_INIT_FROM] = json.dumps(row.init_from)
    if spec.credentials.aws_profile:
        env["AWS_PROFILE"] = spec.credentials.aws_profile
    program = spec.program
    head = ("module", program.module) if program.module else ("script", str(program.script))
    return LaunchPlan(
        job=row.id,
        attempt=attempt.number,
        token=attempt.token,
        nodes=spec.gang.nodes,
        workers_per_node=spec.gang.workers_per_node,
        cpus_per_worker=spec.gang.cpus_per_worker,
        npus_per_node=spec.gang.npus_per_node,
        program=(*head, *program.args),
        env=env,
        from_env=spec.credentials.from_env,
        prepare=prepare,
        work_root=home.work_root,
        grace_s=spec.limits.drain_grace_s,
        start_timeout_s=spec.limits.start_timeout_s,
        interface=spec.gang.interface,
        bind=spec.gang.bind,
        isolate=home.settings.isolate,
        lease_s=home.settings.lease_s,
        hang_s=spec.limits.hang_s,
        earlier_tokens=earlier_tokens,
        code=code,
        code_roots=tuple(node.get("code_root", "") for node in attempt.nodes),
        data_dir=spec.data.dir or "",
        min_free_bytes=home.settings.min_free_bytes,
        log_limit_bytes=home.settings.log_limit_mib << 20,
        keep_attempts=home.settings.keep_attempts,
        work_bound_bytes=int(home.settings.work_bound_gib * (1 << 30)),
    )


class Effects:
    """Runs pending effects in a few threads; `step` is called by the loop and never blocks."""

    def __init__(self, store: Store, gangs: Gangs, tracking: Tracking, home: Home, *, code: str) -> None:
        """`code`: digest of our packages that every node is to run."""
        self.store, self.gangs, self.tracking, self.home, self.code = store, gangs, tracking, home, code
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="effect")
        # What MLflow holds up is not to hold up launches and stops.
        self._asking = ThreadPoolExecutor(4, thread_name_prefix="ask-mlflow")
        self._closing = ThreadPoolExecutor(4, thread_name_prefix="close-tracking")
        self._running: dict[str, Future[None]] = {}  # by job

    def step(self) -> None:
        """Start what can be started: the oldest pending effect of each job that has none under way."""
        now = time.time()
        self._running = {job: future for job, future in self._running.items() if not future.done()}
        looked_at = set(self._running)
        for effect in self.store.pending_effects():
            waits = 0.0 < effect.not_before - now <= _RETRY_S[-1]  # not where the clock was set back
            if effect.job_id not in looked_at and not waits:
                pool = self._closing if effect.effect is Effect.CLOSE_TRACKING else self._pool
                self._running[effect.job_id] = pool.submit(self._run, effect)
            looked_at.add(effect.job_id)

    def shutdown(self) -> None:
        for pool in (self._pool, self._asking, self._closing):
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, effect: PendingEffect) -> None:
        try:
            self._do(effect)
        except RetryableError as error:
            self._again(effect, error)
        except Exception as error:
            _LOG.exception("action=%s job=%s attempt=%d", effect.effect.value, effect.job_id, effect.attempt)
            self._again(effect, error)

    def _again(self, effect: PendingEffect, error: Exception) -> None:
        """Not done is never done: it stays pending, with what was seen."""
        wait_s = _RETRY_S[min(effect.tries, len(_RETRY_S) - 1)]
        _LOG.warning("action=%s job=%s retry_in_s=%s: %s", effect.effect.value, effect.job_id, wait_s, error)
        self.store.effect_failed(effect, str(error), retry_at=time.time() + wait_s)

    def _do(self, effect: PendingEffect) -> None:
        row = self.store.get(effect.job_id)
        if effect.effect is Effect.LAUNCH:
            self._launch(row, effect)
        elif effect.effect is Effect.STOP:
            self._stop(row, effect)
        elif effect.effect is Effect.RELEASE:
            self.gangs.release(row.id, effect.attempt, row.spec.gang.nodes)
            self.gangs.register.forget(row.id, effect.attempt, row.spec.gang.nodes)
        elif effect.effect is Effect.CLOSE_TRACKING and row.state.final and row.job.attempt == effect.attempt:
            if effect.tries == 0:  # not again each time that MLflow does not answer
                self._keep_spare(row, effect)
            self.tracking.close(row)  # else it was resumed meanwhile: its next end closes it, and MLflow delays nothing
        self.store.effect_done(effect)

    def _launch(self, row: JobRow, effect: PendingEffect) -> None:
        attempt = self.store.attempt(row.id, effect.attempt)
        if attempt.ended_at is not None:
            return
        if row.job.stop_for is not None and attempt.plan is None:
            return  # stopped before anything was started; without a plan the attempt is known to be empty
        if attempt.plan is None:
            plan = self._plan(row, attempt)
            self.store.note_attempt(row.id, attempt.number, plan=asdict(plan))
        else:  # asked for before we were killed: agents may run it, under the lease that stands in it
            plan = LaunchPlan.from_json(json.dumps(attempt.plan))
        self.gangs.launch(plan, tuple(node["id"] for node in attempt.nodes))

    def _plan(self, row: JobRow, attempt: AttemptRow) -> LaunchPlan:
        run = self._run_of(row)
        unproven = {entry["attempt"] for entry in self.store.events(row.id) if entry["action"] == "node_lost"}
        lost = [a.token for a in self.store.attempts(row.id) if a.number in unproven]
        return build_launch(
            row,
            attempt,
            self.home,
            tracking_uri=self.tracking.uri,
            mlflow_run=run,
            earlier_tokens=tuple(lost[-_SWEPT_AGAIN:]),
            code=self.code,
        )

    def _run_of(self, row: JobRow) -> str | None:
        """The job's MLflow run. Training never waits for tracking: without an answer in a few seconds it starts without
        one, and committed points reach the run when MLflow is back (close)."""
        asked = self._asking.submit(self.tracking.ensure_run, row)
        try:
            run = asked.result(timeout=_TRACKING_S)
        except (FutureTimeout, RetryableError) as error:
            asked.cancel()
            seen = str(error) or f"MLflow at {self.tracking.uri} did not answer within {_TRACKING_S:g} s"
            self.store.log(row, "tracking_unavailable", {"seen": seen})
            return row.mlflow_run
        self.store.note(row.id, mlflow_run=run)
        return run

    def _keep_spare(self, row: JobRow, effect: PendingEffect) -> None:
        """The nodes are free: whoever gets them next is not to wait for Ray."""
        attempt = self.store.attempt(row.id, effect.attempt) if effect.attempt > 0 else None
        if attempt is None or attempt.plan is None:
            return  # cancelled before it had a node
        plan = LaunchPlan.from_json(json.dumps(attempt.plan))
        try:
            self.gangs.keep_spare(plan, tuple(node["id"] for node in attempt.nodes))
        except ClusterUnreachable as error:  # MLflow, which comes next, is not to wait for Ray
            _LOG.warning("action=keep_spare job=%s: %s", row.id, error)

    def _stop(self, row: JobRow, effect: PendingEffect) -> None:
        if row.job.attempt == effect.attempt and row.job.stop_for is not None:
            why, grace_s = row.job.stop_for.value, row.spec.limits.drain_grace_s
            self.gangs.stop(row.id, effect.attempt, row.spec.gang.nodes, why, grace_s)


def python_command(*arguments: str) -> list[str]:
    """A process of our own interpreter."""
    return [sys.executable, *arguments]
