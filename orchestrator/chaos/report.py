"""The report of a campaign: a page with a table that names the seed, a picture of its timeline, and all trials as JSON,
with which an interrupted campaign goes on."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.preflight.facts import installed_folders, package_files
from jobs.errors import SpecError
from orchestrator.chaos.campaign import Trial
from orchestrator.chaos.oracle import UNASKED, is_lost
from orchestrator.chaos.plan import KINDS

_END = "Left of any of their attempts on any host when all was over, by the hosts' own word: {}."
_ROOMY = 60  # above so many, bars are thin


def digest_of_code() -> str:
    """Twelve digits for all our packages as they are here: what judges and what keeps jobs is tried, too, and not only
    what runs on nodes."""
    folders = {**installed_folders(), "orchestrator": Path(__file__).parents[1]}
    digest = hashlib.sha256()
    for name, path in sorted(package_files(folders).items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a campaign has found so far."""

    trials: tuple[Trial, ...]
    where: str
    when: str
    code: str  # digest of the code that was tried
    plan: dict[str, Any]  # what counts of it
    unjudged: tuple[str, ...] = ()  # jobs that were being tried when the campaign was ended, or whose fault hit nothing
    at_the_end: tuple[str, ...] | None = None  # what was left on any host after all of it; None while it goes on

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Findings:
        end = value["at_the_end"]
        trials = tuple(Trial.from_json(trial) for trial in value["trials"])
        lists = {"trials": trials, "unjudged": tuple(value["unjudged"])}
        return cls(**{**value, **lists, "at_the_end": None if end is None else tuple(end)})

    @property
    def jobs(self) -> list[str]:
        """All that the campaign has submitted to be struck."""
        return [*(trial.job for trial in self.trials), *self.unjudged]


def page(found: Findings, *, picture: str | None) -> str:
    """Markdown."""
    trials = found.trials
    seeds = sorted({trial.fault.seed for trial in trials} or {found.plan["seed"]})
    seed = f"Seed{'s' if len(seeds) > 1 else ''} {' and '.join(map(str, seeds))}"
    bad = [trial for trial in trials if trial.wrong]
    orphans = sum(1 for trial in trials for problem in trial.wrong if problem.startswith("orphans"))
    unasked = sum(1 for trial in trials for problem in trial.wrong if problem.endswith(UNASKED))
    lost = sum(1 for trial in trials if is_lost(trial.fault.kind, trial.wrong))
    early = sum(1 for trial in trials if trial.struck is not None and not trial.struck["trained"])
    missed = sum(1 for trial in trials if trial.struck is None)
    lines = [
        "# Chaos",
        "",
        f"{seed}, {len(trials)} faults of {len({t.fault.kind for t in trials})} kinds, {found.when}, "
        f"{found.where}, code {found.code}. {early} of them came before the gang's first step.",
        "",
        f"**{len(trials) - len(bad)} of {len(trials)} passed.** Orphans after all faults: {orphans}; hosts that could "
        f"not be asked: {unasked}. Healthy jobs lost: {lost}. Faults that hit nothing: {missed}.",
        "",
        *([_END.format("; ".join(found.at_the_end) or "nobody"), ""] if found.at_the_end is not None else []),
        "Each fault hits a job of its own, which has to succeed, and whose attempt has to end for a reason that such a",
        "fault has. Its attempts must not overlap by the supervisors' own records, leave no process on any host by the",
        "hosts' own word, an unbroken checkpoint chain, and the bits of an undisturbed run.",
        "",
        *([f"![timeline]({picture})", ""] if picture else []),
        "| kind | faults | passed | attempts | fault to the next first step, median (longest), s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind in KINDS:
        mine = [trial for trial in trials if trial.fault.kind == kind]
        if mine:
            passed = sum(1 for trial in mine if not trial.wrong)
            counts = sorted({len(trial.causes) for trial in mine})
            back = [trial.back_after_s for trial in mine if trial.back_after_s is not None]
            seconds = f"{statistics.median(back):.1f} ({max(back):.1f})" if back else ""
            lines.append(f"| {kind} | {len(mine)} | {passed} | {', '.join(map(str, counts))} | {seconds} |")
    if bad:
        lines += ["", "## What went wrong", ""]
        for trial in bad:
            what = "; ".join(trial.wrong)
            lines.append(
                f"- fault {trial.fault.number} of seed {trial.fault.seed}, {trial.fault.kind} {trial.fault.moment} "
                f"(step {trial.step}) of {trial.job}: {what}"
            )
    return "\n".join([*lines, ""])


def draw(trials: Sequence[Trial], path: Path) -> None:
    """One bar a job from its submission on, by kinds; the mark is its fault, the light part the time until the next
    new step."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    order = list(KINDS)
    rows = sorted(trials, key=lambda trial: (order.index(trial.fault.kind), trial.fault.number))
    height_in = 0.22 if len(rows) <= _ROOMY else 0.08
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + height_in * len(rows)), layout="constrained")
    for row, trial in enumerate(rows):
        colour = "tab:red" if trial.wrong else "tab:green"
        axes.barh(row, trial.ended_at - trial.submitted_at, color=colour, height=0.7)
        if trial.struck is not None:
            struck_s = trial.struck["at"] - trial.submitted_at
            axes.barh(row, trial.back_after_s or 0.0, left=struck_s, color="0.85", height=0.7)
            axes.plot([struck_s, struck_s], [row - 0.5, row + 0.5], color="black", linewidth=1.2)
    kinds = [trial.fault.kind for trial in rows]
    firsts = [row for row, kind in enumerate(kinds) if row == 0 or kinds[row - 1] != kind]
    middles = [(first + last - 1) / 2 for first, last in pairwise([*firsts, len(rows)])]
    axes.set_yticks(middles, [kinds[first] for first in firsts], fontsize=8)
    axes.hlines([first - 0.5 for first in firsts[1:]], 0, 1, transform=axes.get_yaxis_transform(), color="0.8", lw=0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("seconds since the job was submitted")
    figure.savefig(path)
    pyplot.close(figure)


def write(found: Findings, target: Path) -> None:
    """TARGET (Markdown), and beside it the picture and all trials as JSON, each whole or as it was; the JSON first,
    from which a campaign goes on."""
    picture = target.with_suffix(".svg")
    _replace(target.with_suffix(".json"), json.dumps(asdict(found), indent=1))
    _replace(target, page(found, picture=picture.name if found.trials else None))
    if found.trials:
        draw(found.trials, drawn := _beside(picture))
        drawn.replace(picture)


def _replace(path: Path, text: str) -> None:
    written = _beside(path)
    written.write_text(text)
    written.replace(path)


def _beside(path: Path) -> Path:
    return path.with_name(f".part-{path.name}")


def read(target: Path) -> Findings | None:
    """What `write` left beside TARGET; None if there is nothing."""
    path = target.with_suffix(".json")
    try:
        return Findings.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SpecError(f"{path} is no report of a campaign: {error}", hint="give --report another name") from error
