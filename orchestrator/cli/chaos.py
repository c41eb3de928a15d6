"""`rexctl chaos`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.common import HomeOption, JsonOption, open_stack, print_json, say


def command(  # noqa: PLR0917 - typer's options
    plan: Annotated[
        Path | None, typer.Argument(help="Chaos plan (YAML).", metavar="[PLAN]", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the faults' order, moments and targets.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the report there (Markdown).")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the faults, and what cannot be done here.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Try faults on this cluster with canary jobs: kill and stop each part, cut hosts off, take services away; after
    each fault judge whether the job went on as it must. Other jobs that run here are hit by some of them as well."""
    from orchestrator.chaos.plan import faults, read_plan

    chosen = read_plan(plan, seed=seed)
    todo = faults(chosen)
    impossible = {kind: lacks for kind, lacks in chosen.possible().items() if lacks}
    if dry:
        planned = [{"number": f.number, "kind": f.kind, "at": round(f.at, 3)} for f in todo]
        if json:
            return print_json({"seed": chosen.seed, "faults": planned, "not_possible": impossible})
        for one in planned:
            print(f"{one['number']:>4} {one['kind']:<20} at {one['at']:.0%} of the steps")
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
    from orchestrator.chaos.report import write

    store = stack.up(say)
    code = read_code().digest[:12]
    gangs = Gangs(stack.ray_address)
    gangs.connect()
    campaign = Campaign(chosen, stack, store, gangs, base=plan.parent if plan else None)
    trials = []
    if chosen.canary.job is not None:
        say(f"{chosen.canary.job} is run once without a fault, to know what it ends with")
    for fault in todo:
        trial = campaign.try_one(fault)
        trials.append(trial)
        hit = "hit nothing" if trial.struck is None else f"hit {trial.struck['what']} at step {trial.step}"
        back = "" if trial.back_after_s is None else f", {trial.back_after_s:.1f} s to the next new step"
        told = "; ".join(trial.wrong) or "passed"
        say(f"{fault.number}/{len(todo)} {fault.kind}: {hit}{back}, attempts {', '.join(trial.causes)}: {told}")
        if report is not None:  # as far as it has come: a campaign takes hours
            where = f"{sum(node.alive for node in gangs.nodes())} Ray nodes, code {code}"
            write(chosen, trials, report, where=where, when=time.strftime("%Y-%m-%d"))
    left = campaign.at_the_end(trials)
    for problem in left:
        say(f"at the end: {problem}")
    if report is not None:
        write(chosen, trials, report, where=where, when=time.strftime("%Y-%m-%d"), at_the_end=left)
    wrong = [trial for trial in trials if trial.wrong]
    if json:
        print_json({"seed": chosen.seed, "trials": [trial.to_json() for trial in trials], "at_the_end": left})
    else:
        print(f"{len(trials) - len(wrong)} of {len(trials)} faults passed (seed {chosen.seed})")
    sys.exit(1 if wrong or left else 0)
