"""Prints docs/states.md from the transition table: `python -m tools.state_page > docs/states.md`."""

from __future__ import annotations

from itertools import product

from jobs.budgets import Cause, Retry
from jobs.errors import ConflictError
from jobs.states import (
    TABLE,
    AttemptEnded,
    BackoffElapsed,
    Event,
    GangGranted,
    Job,
    ResumeRequested,
    State,
    StopRequested,
    WorkersReported,
    transition,
)

_HEAD = """# States of a job

Written by `make docs` from the transition table in `jobs/states.py`; a test compares the two.

Wishes (to cancel, to preempt) are fields of a job, not states: a job that drains is still `running`.

"""


def events() -> dict[str, Event]:
    """Every event, with every cause it can carry, by the name on its arrow."""
    found: dict[str, Event] = {
        "gang granted": GangGranted(),
        "workers reported": WorkersReported(attempt=1),
        "backoff elapsed": BackoffElapsed(),
        "resume requested": ResumeRequested(),
    }
    for cause in (Cause.CANCELLED, Cause.PREEMPTED, Cause.TIME_LIMIT):
        found[f"stop requested ({cause.value})"] = StopRequested(cause=cause)
    for cause in Cause:
        found[f"ended: {cause.value}"] = AttemptEnded(attempt=1, cause=cause, progressed=True)
    return found


def arrows() -> dict[tuple[State, State], list[str]]:
    """All moves: (from, to) -> what causes them, each tried out on `transition` itself."""
    found: dict[tuple[State, State], list[str]] = {}
    for state, (name, event) in product(State, events().items()):
        if (state, type(event)) not in TABLE:
            continue
        for spent, words in ((False, ""), (True, ", budget spent")):
            retry = Retry(preempted=0, node_lost=0, infrastructure=0, crash=0, hang=0) if spent else Retry()
            try:
                job, _ = transition(Job(id="j", state=state, attempt=1, retry=retry), event, now=0.0)
            except ConflictError:
                continue
            names = found.setdefault((state, job.state), [])
            if job.state is not state and name not in names:
                names.append(name + words)
    return {move: names for move, names in found.items() if names}


def page() -> str:
    lines = [_HEAD, "```mermaid\nstateDiagram-v2\n    [*] --> queued\n"]
    rows = ["\n| from | to | when |\n| --- | --- | --- |\n"]
    for (before, after), names in sorted(arrows().items(), key=lambda item: (item[0][0].value, item[0][1].value)):
        lines.append(f"    {before.value} --> {after.value}\n")
        rows.append(f"| `{before.value}` | `{after.value}` | {'; '.join(names)} |\n")
    return "".join([*lines, "```\n", *rows])


if __name__ == "__main__":
    print(page(), end="")
