"""One canary job for each fault: submitted, struck, followed to its end, judged."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.chaos import canary
from cluster.gang import Gangs, Node
from cluster.lease import MARGIN_S
from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs.budgets import Cause
from jobs.errors import ClusterUnreachable, NotFoundError, RetryableError, RexError, StackError
from jobs.spec import JobSpec, build_spec
from jobs.states import StopRequested
from orchestrator.chaos.oracle import MISSED, UNASKED, Evidence, verdict
from orchestrator.chaos.plan import KINDS, Canary, Fault, Plan
from orchestrator.chaos.strikes import Strikes
from orchestrator.stack import Stack
from orchestrator.store import Store
from orchestrator.submit import read_spec, submit
from orchestrator.view import job_view

_LOG = logging.getLogger("rexctl.chaos")
_PATIENCE_S = 900.0  # for one job, whatever hits it
_LOOK_S = 60.0  # for every host to say who is left
_ANSWER_S = 15.0  # for one node: one that was switched off stays on Ray's list for a minute
_POLL_S = 0.2
_SECOND_S = 1.0
_STRUCK_S = 5.0  # a strike goes through Ray, which takes its time on a busy machine
_LONGER = (1, 3, 9)  # so many times as long the canary has left to train, where its fault came too late
_HANG_S = 10.0  # the canary's patience; less than what is stopped stays so
_SEEN_S = 10.0  # a death that nobody has to be patient for is seen by then, even on a busy machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A fault, what it hit, and what became of the job."""

    fault: Fault
    job: str
    struck: dict[str, Any] | None
    wrong: tuple[str, ...]
    causes: tuple[str, ...]  # how the attempts ended
    submitted_at: float
    ended_at: float
    back_after_s: float | None  # from the strike to the next step beyond where it struck
    step: int  # at which it struck

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Trial:
        lists = {name: tuple(value[name]) for name in ("wrong", "causes")}
        return cls(**{**value, **lists, "fault": Fault(**value["fault"])})


class Campaign:
    """The trials of a plan, one after the other, on a stack that is up."""

    def __init__(self, plan: Plan, stack: Stack, store: Store, gangs: Gangs, *, base: Path | None = None) -> None:
        self.plan, self.stack, self.store, self.gangs = plan, stack, store, gangs
        self.strikes = Strikes(plan, gangs, stack)
        self._base = base
        self._undisturbed: str | None = None
        self.unjudged: list[str] = []  # jobs without a verdict: being tried, or their fault hit nothing

    def spec(self, fault: Fault, *, longer: int = 1) -> JobSpec:
        """The job for that fault: one that is still training when whoever has to see the fault has seen it."""
        given, kind = self.plan.canary, KINDS[fault.kind]
        if given.job is not None:
            return read_spec((self._base or Path()) / given.job, self.stack.home)
        rest_s = _STRUCK_S
        if kind.patient:  # until the other nodes have been told, or what was away is back
            rest_s = self.stack.home.settings.lease_s + max(2 * MARGIN_S, self.plan.pause_s + _SECOND_S)
        elif kind.expects == "goes_on":
            rest_s = _SEEN_S
        return canary_spec(given, max(given.steps, math.ceil(longer * rest_s / (1 - fault.at) / given.step_s)))

    def undisturbed(self, spec: JobSpec) -> str:
        """What the job ends with where nothing happens: the canary's is known, a job of the user's is run once."""
        if self.plan.canary.job is None:
            arguments = list(spec.program.args)
            return _digest_of(canary.result(int(arguments[arguments.index("--steps") + 1])))
        if self._undisturbed is None:
            self._undisturbed = self._run_undisturbed(spec)
        return self._undisturbed

    def _run_undisturbed(self, spec: JobSpec) -> str:
        job = submit(spec, self.store, self.stack).id
        view = self._follow(job, lambda view: None)
        digest = None if view["state"] != "succeeded" else self._digest(job)[0]
        if digest is None:
            ended = f"{view['state']}: {view['detail']}"
            raise StackError(f"the undisturbed job {job} ended {ended}", hint="mend that first")
        return digest

    def try_one(self, fault: Fault) -> Trial:
        """Strike a fresh job, and judge. Whatever was done has been undone on return.

        A fault that comes too late for the canary is tried again on a longer one: how long a strike takes to get there
        is the cluster's to say.
        """
        for longer in _LONGER if self.plan.canary.job is None else (1,):
            trial = self._try(fault, self.spec(fault, longer=longer))
            if trial.wrong != (MISSED,):
                break
            _LOG.warning("action=strike %s hit nothing: the job %s had ended", fault.kind, trial.job)
        self.unjudged.remove(trial.job)
        return trial

    def _try(self, fault: Fault, spec: JobSpec) -> Trial:
        expected_digest = self.undisturbed(spec)
        submitted_at = time.time()
        job = submit(spec, self.store, self.stack).id
        self.unjudged.append(job)
        struck: list[dict[str, Any] | None] = []
        at_step: list[int] = []

        def each(view: dict[str, Any]) -> None:
            if not struck and self._is_time(fault, job, view):
                at_step.append(view["progress"]["step"])
                attempt = self.store.attempts(job)[-1]
                trained = attempt.first_step_at is not None
                hit = self.strikes.strike(fault, attempt, view)
                struck.append(None if hit is None else {**hit, "attempt": attempt.number, "trained": trained})

        view = self._follow(job, each)
        not_undone = self.strikes.mend()
        hit = struck[0] if struck else None
        digest, chain = self._digest(job)
        tokens = [attempt.token for attempt in self.store.attempts(job)]
        seen = Evidence(
            kind=fault.kind,
            struck=hit,
            state=view["state"],
            detail=view["detail"],
            attempts=tuple(view["attempts"]),
            looks=tuple(self._look(job, tokens, {host for attempt in view["attempts"] for host in attempt["hosts"]})),
            chain=chain,
            digest=digest,
            expected_digest=expected_digest,
        )
        return Trial(
            fault=fault,
            job=job,
            struck=hit,
            wrong=(*verdict(seen), *not_undone),
            causes=tuple(str(attempt["cause"]) for attempt in view["attempts"]),
            submitted_at=submitted_at,
            ended_at=time.time(),
            back_after_s=self._back_after_s(job, hit),
            step=at_step[0] if at_step else 0,
        )

    def _is_time(self, fault: Fault, job: str, view: dict[str, Any]) -> bool:
        if fault.early_s is not None:
            attempts = self.store.attempts(job)
            return bool(attempts and attempts[-1].nodes) and time.time() - attempts[-1].granted_at >= fault.early_s
        done, total = view["progress"]["step"], view["progress"]["total_steps"] or 0
        heard = len(view["ranks"]) == self.store.get(job).spec.gang.world_size  # who has made no step yet hangs unseen
        return bool(view["state"] == "running" and heard and total and done >= fault.at * total)

    def _back_after_s(self, job: str, hit: dict[str, Any] | None) -> float | None:
        """Seconds from the strike to the end of the first step of the attempt that went on; None if none did."""
        steps = [attempt.first_step_at for attempt in self.store.attempts(job)]
        after = [at - hit["at"] for at in steps if hit is not None and at is not None and at > hit["at"]]
        return min(after, default=None)

    def _follow(self, job: str, each: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """To its end, which comes by force after `_PATIENCE_S`, and when this is interrupted or a strike fails."""
        deadline = time.monotonic() + _PATIENCE_S
        try:
            while True:
                view = job_view(self.store, job, mlflow_uri=self.stack.mlflow_uri)
                each(view)
                if view["state"] in ("succeeded", "failed", "cancelled"):
                    return view
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_S)
        except BaseException:
            self._give_up(job)
            raise
        self._give_up(job)
        return view

    def _give_up(self, job: str) -> None:
        """Undo what was done at once, and leave no job behind."""
        for problem in self.strikes.mend(at_once=True):
            _LOG.error("action=mend %s", problem)
        row = self.store.get(job)
        if not row.state.final:
            stop = StopRequested(cause=Cause.CANCELLED, detail="the chaos campaign was ended")
            self.store.request(job, stop, action="cancel_requested", detail={"by": "chaos"})

    def at_the_end(self, jobs: Sequence[str]) -> list[str]:
        """What is left on any host of any attempt of these jobs, in words."""
        attempts = [attempt for job in jobs for attempt in self.store.attempts(job)]
        tokens = [attempt.token for attempt in attempts]
        hosts = {node["host"] for attempt in attempts for node in attempt.nodes}
        looks = self._look("", tokens, hosts)
        silent = sorted(hosts - {look["host"] for look in looks})
        return [
            *(f"orphans on {look['host']}: {look['orphans']}" for look in looks if look["orphans"]),
            *(f"{host} {UNASKED}" for host in silent),
        ]

    def _look(self, job: str, tokens: list[str], hosts: Collection[str]) -> list[dict[str, Any]]:
        """What every host testifies that has a node which can be asked. A host may be on Ray's list twice, and one of
        the job's `hosts` may just be coming back."""
        looks: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + _LOOK_S
        while time.monotonic() < deadline:
            missing = [node for node in self.gangs.nodes() if node.alive and node.host not in looks]
            if not missing:
                if looks.keys() >= set(hosts):
                    break
                time.sleep(_POLL_S)
                continue
            with ThreadPoolExecutor(len(missing)) as pool:
                looks.update(
                    (look["host"], look) for look in pool.map(lambda n: self._ask(n, job, tokens), missing) if look
                )
        return list(looks.values())

    def _ask(self, node: Node, job: str, tokens: list[str]) -> dict[str, Any] | None:
        """What a node testifies; None if it does not answer now: it may just be coming back."""
        try:
            work_root = self.stack.home.work_root
            look: dict[str, Any] = self.gangs.on_node(node.id, "look", work_root, job, tokens, timeout_s=_ANSWER_S)
        except ClusterUnreachable:
            time.sleep(1.0)
            return None
        return look

    def _digest(self, job: str) -> tuple[str | None, tuple[str, ...]]:
        """What the job's newest checkpoint holds, and the problems of the chain that leads there."""
        row = self.store.get(job)
        checkpoints = CheckpointStore(open_store(row.store_uri, row.commit_protocol), job)
        for _ in range(10):
            try:
                newest = checkpoints.newest()
                if newest is None:
                    return None, ("there is none",)
                checkpoints.verify(newest)
                problems = [] if checkpoints.history(newest) else ["it is empty"]
                files = sorted(entry.sha256 for entry in newest.files if not entry.history)
                return _digest_of((newest.step, newest.certificate, files)), tuple(problems)
            except RetryableError:
                time.sleep(2.0)  # the store may just be coming back
            except (RexError, NotFoundError) as error:
                return None, (str(error),)
        return None, ("the store does not answer",)


def _digest_of(end: tuple[int, str, list[str]]) -> str:
    step, certificate, files = end
    return f"{step}:{certificate}:{':'.join(files)}"


def canary_spec(given: Canary, steps: int) -> JobSpec:
    """The canary as a job."""
    arguments = ("--steps", steps, "--step_s", given.step_s, "--commit_every", given.commit_every)
    return build_spec(
        {
            "name": "canary",
            "gang": {"nodes": given.nodes, "workers_per_node": given.workers_per_node},
            "program": {"module": "cluster.chaos.canary", "args": [str(word) for word in arguments]},
            "retry": {"backoff_s": 0.5},
            "limits": {"hang_s": max(_HANG_S, 20 * given.step_s)},
            "credentials": given.credentials.model_dump(),
        },
        "the canary",
    )
