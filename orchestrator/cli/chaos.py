"""`rexctl chaos`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import SpecError
from orchestrator.cli.common import HomeOption, JsonOption, open_stack, print_json, say

if TYPE_CHECKING:
    from orchestrator.chaos.campaign import Trial
    from orchestrator.chaos.plan import Fault


def command(  # noqa: PLR0917 - typer's options
    plan: Annotated[
        Path | None, typer.Argument(help="Chaos plan (YAML).", metavar="[PLAN]", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the faults' order, moments and targets.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the report there (Markdown).")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the faults, and what cannot be done here.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the campaign of that --report ended.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Try faults on this cluster with canary jobs: kill and stop each part, cut hosts off, take services away; after
    each fault judge whether the job went on as it must. Other jobs that run here are hit by some of them as well."""
    from orchestrator.chaos.plan import faults, read_plan

    if resume and report is None:
        raise SpecError("--resume: no --report was given", hint="name the report of the campaign that is to go on")
    chosen = read_plan(plan, seed=seed)
    todo = faults(chosen)
    impossible = {kind: lacks for kind, lacks in chosen.possible().items() if lacks}
    if dry:
        planned = [{"number": f.number, "kind": f.kind, "at": round(f.at, 3), "early_s": f.early_s} for f in todo]
        if json:
            return print_json({"seed": chosen.seed, "faults": planned, "not_possible": impossible})
        for fault in todo:
            print(f"{fault.number:>4} {fault.kind:<20} {_moment(fault)}")
        for kind, lacks in impossible.items():
            print(f"   - {kind:<20} cannot be done here: {lacks}")
        return None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # what was done to the cluster is undone on the way out
    stack = open_stack(home)
    os.environ.update(stack.ray_auth)  # which Ray reads when it is imported
    from cluster.gang import Gangs
    from cluster.preflight.code import read_code
    from orchestrator.chaos.campaign import Campaign
    from orchestrator.chaos.report import Findings, read, write

    code = read_code().digest[:12]
    found = read(report) if report is not None and resume else None
    done = () if found is None else found.trials
    if found is not None:
        _check_the_same(found.code, code, [trial.fault for trial in done], todo)
    store = stack.up(say)
    gangs = Gangs(stack.ray_address)
    gangs.connect()
    campaign = Campaign(chosen, stack, store, gangs, base=plan.parent if plan else None)
    if chosen.canary.job is not None:
        say(f"{chosen.canary.job} is run once without a fault, to know what it ends with")
    if done:
        say(f"going on after {len(done)} of {len(todo)} faults")
    for fault in todo[len(done) :]:
        trial = campaign.try_one(fault)
        done = (*done, trial)
        say(f"{fault.number}/{len(todo)} {_told(trial)}")
        where = f"{sum(node.alive for node in gangs.nodes())} Ray nodes"
        found = Findings(trials=done, where=where, when=time.strftime("%Y-%m-%d"), code=code)
        if report is not None:  # as far as it has come: a campaign takes hours
            write(found, report)
    left = campaign.at_the_end(done)
    for problem in left:
        say(f"at the end: {problem}")
    if report is not None and found is not None:
        write(replace(found, at_the_end=tuple(left)), report)
    wrong = [trial for trial in done if trial.wrong]
    if json:
        print_json({"seed": chosen.seed, "trials": [trial.to_json() for trial in done], "at_the_end": left})
    else:
        print(f"{len(done) - len(wrong)} of {len(done)} faults passed (seed {chosen.seed})")
    sys.exit(1 if wrong or left else 0)


def _moment(fault: Fault) -> str:
    if fault.early_s is not None:
        return f"{fault.early_s:.1f} s after the grant of its gang"
    return f"at {fault.at:.0%} of the steps"


def _told(trial: Trial) -> str:
    when = f"at step {trial.step}" if trial.fault.early_s is None else _moment(trial.fault)
    hit = "hit nothing" if trial.struck is None else f"hit {trial.struck['what']} {when}"
    back = "" if trial.back_after_s is None else f", {trial.back_after_s:.1f} s to the next new step"
    verdict = "; ".join(trial.wrong) or "passed"
    return f"{trial.fault.kind}: {hit}{back}, attempts {', '.join(trial.causes)}: {verdict}"


def _check_the_same(its_code: str, code: str, done: Sequence[Fault], todo: Sequence[Fault]) -> None:
    """SpecError unless that report is of the first faults of this campaign, tried on this code."""
    if its_code != code:
        raise SpecError(
            f"--resume: the report is of code {its_code}, this is {code}", hint="give --report another name"
        )
    if list(done) != list(todo[: len(done)]):
        raise SpecError("--resume: the report is of other faults", hint="take the plan and the seed that it names")
