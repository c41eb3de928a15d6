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
    from orchestrator.chaos.plan import Fault, Plan
    from orchestrator.chaos.report import Findings


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
    if dry:
        return _print_planned(chosen, todo, as_json=json)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # what was done to the cluster is undone on the way out
    stack = open_stack(home)
    os.environ.update(stack.ray_auth)  # which Ray reads when it is imported
    from cluster.gang import Gangs
    from orchestrator.chaos.campaign import Campaign
    from orchestrator.chaos.report import Findings, digest_of_code, read, write

    found = Findings(
        trials=(),
        where="",
        when=time.strftime("%Y-%m-%d"),
        code=digest_of_code(),
        plan=chosen.what_counts(),
    )
    if resume and report is not None:
        found = _so_far(read(report), found)
    store = stack.up(say)
    gangs = Gangs(stack.ray_address)
    gangs.connect()
    campaign = Campaign(chosen, stack, store, gangs, base=plan.parent if plan else None)
    if chosen.canary.job is not None:
        say(f"{chosen.canary.job} is run once without a fault, to know what it ends with")
    if found.trials:
        say(f"going on after {len(found.trials)} of {len(todo)} faults")
    before = found.unjudged
    for fault in todo[len(found.trials) :]:
        try:
            trial = campaign.try_one(fault)
        except BaseException:
            if report is not None:  # for the last look, if this is resumed
                write(replace(found, unjudged=(*before, *campaign.unjudged)), report)
            raise
        where = f"{sum(node.alive for node in gangs.nodes())} Ray nodes"
        found = replace(found, trials=(*found.trials, trial), where=where, unjudged=(*before, *campaign.unjudged))
        say(f"{fault.number}/{len(todo)} {_told(trial)}")
        if report is not None:  # as far as it has come: a campaign takes hours
            write(found, report)
    left = campaign.at_the_end(found.jobs)
    for problem in left:
        say(f"at the end: {problem}")
    if report is not None:
        write(replace(found, at_the_end=tuple(left)), report)
    done = found.trials
    wrong = [trial for trial in done if trial.wrong]
    if json:
        print_json({"seed": chosen.seed, "trials": [trial.to_json() for trial in done], "at_the_end": left})
    else:
        print(f"{len(done) - len(wrong)} of {len(done)} faults passed (seed {chosen.seed})")
    sys.exit(1 if wrong or left else 0)


def _print_planned(plan: Plan, todo: Sequence[Fault], *, as_json: bool) -> None:
    impossible = {kind: lacks for kind, lacks in plan.possible().items() if lacks}
    if as_json:
        planned = [{"number": f.number, "kind": f.kind, "at": round(f.at, 3), "early_s": f.early_s} for f in todo]
        return print_json({"seed": plan.seed, "faults": planned, "not_possible": impossible})
    for fault in todo:
        print(f"{fault.number:>4} {fault.kind:<20} {fault.moment}")
    for kind, lacks in impossible.items():
        print(f"   - {kind:<20} cannot be done here: {lacks}")
    return None


def _told(trial: Trial) -> str:
    when = f"at step {trial.step}" if trial.fault.early_s is None else trial.fault.moment
    hit = "hit nothing" if trial.struck is None else f"hit {trial.struck['what']} {when}"
    back = "" if trial.back_after_s is None else f", {trial.back_after_s:.1f} s to the next new step"
    verdict = "; ".join(trial.wrong) or "passed"
    return f"{trial.fault.kind}: {hit}{back}, attempts {', '.join(trial.causes)}: {verdict}"


def _so_far(before: Findings | None, new: Findings) -> Findings:
    """What the campaign had found that is to go on; SpecError if that was another one."""
    if before is None:
        return new
    if before.code != new.code:
        told = f"--resume: the report is of code {before.code}, this is {new.code}"
        raise SpecError(told, hint="give --report another name")
    odd = sorted(key for key in new.plan if before.plan.get(key) != new.plan[key])
    if odd:
        told = f"--resume: the report is of another plan ({', '.join(odd)})"
        raise SpecError(told, hint="take the plan and the seed that it began with")
    return replace(new, trials=before.trials, where=before.where, unjudged=before.unjudged)
