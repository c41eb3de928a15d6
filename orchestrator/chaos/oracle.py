"""The verdict on one fault: pure, over what was gathered when the job had ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.budgets import Cause
from orchestrator.chaos.plan import KINDS

UNASKED = "could not be asked who is left there"
MISSED = "the fault hit nothing: what it was meant for was not there, or not any more"
_ENDED, _LOST = "the job ended", "a healthy job was lost"
_NOT_STARTED = {Cause.INFRASTRUCTURE.value, Cause.NODE_LOST.value}  # how the start of a gang may fail
_CLOCKS_S = 1.0  # hosts' clocks may differ by so much where one attempt's end is held against another one's begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen of one job after one fault."""

    kind: str
    struck: dict[str, Any] | None  # what the fault hit, in which attempt, and if that trained; None: nothing was there
    state: str
    detail: str
    attempts: tuple[dict[str, Any], ...]  # as in `rexctl status --json`
    looks: tuple[dict[str, Any], ...]  # cluster.chaos.faults.look of each host that could be asked
    chain: tuple[str, ...]  # problems of the checkpoint chain, none if it is whole
    digest: str | None  # of the last checkpoint's certificate and files
    expected_digest: str | None  # of an undisturbed run


def verdict(seen: Evidence) -> list[str]:
    """What is wrong; an empty list is a pass."""
    return [
        *_outcome(seen),
        *_silent(seen),
        *_orphans(seen),
        *overlaps([span for look in seen.looks for span in look["spans"]]),
        *(f"checkpoint chain: {problem}" for problem in seen.chain),
        *_bits(seen),
    ]


def _outcome(seen: Evidence) -> list[str]:
    if seen.state != "succeeded":
        return [f"{_ENDED} {seen.state}: {seen.detail}"]
    if seen.struck is None:
        return [MISSED]
    causes = [attempt["cause"] for attempt in seen.attempts]
    may_be, number = [cause.value for cause in KINDS[seen.kind].causes], int(seen.struck["attempt"])
    if not seen.struck["trained"]:
        return _start_that_was_hit(causes, number)
    if KINDS[seen.kind].expects == "untouched" and len(causes) > 1:
        return [f"{_LOST}: its attempts ended {', '.join(map(str, causes))}"]
    if KINDS[seen.kind].expects == "goes_on" and len(causes) < 2:
        return ["the fault went unseen: the first attempt went on to the end"]
    if may_be and causes[number - 1] not in may_be:
        return [f"attempt {number} ended as {causes[number - 1]}, not as {' or '.join(may_be)}"]
    return []


def _start_that_was_hit(causes: Sequence[str], number: int) -> list[str]:
    """A gang that had not made a step may go on, or has to start again; the one that comes after it goes through."""
    hit = causes[number - 1]
    if number == len(causes):
        return []
    if hit not in _NOT_STARTED:
        return [f"attempt {number} had not started and ended as {hit}, not as {' or '.join(sorted(_NOT_STARTED))}"]
    if len(causes) > number + 1:
        return [f"{_LOST}: its attempts ended {', '.join(causes)}"]
    return []


def is_lost(kind: str, wrong: Sequence[str]) -> bool:
    """Did a fault that concerns nobody's training end the job or one of its attempts?"""
    return KINDS[kind].expects == "untouched" and any(problem.startswith((_ENDED, _LOST)) for problem in wrong)


def _silent(seen: Evidence) -> list[str]:
    """Hosts of the job that nobody could ask: what may be left there is not known."""
    hosts = {host for attempt in seen.attempts for host in attempt["hosts"]}
    return [f"{host} {UNASKED}" for host in sorted(hosts - {k["host"] for k in seen.looks})]


def _orphans(seen: Evidence) -> list[str]:
    return [f"orphans on {look['host']}: {look['orphans']}" for look in seen.looks if look["orphans"]]


def overlaps(spans: list[dict[str, Any]]) -> list[str]:
    """Attempts that ran at the same time, by the supervisors' own records. One that was killed left no end: the
    certificate of its node, or its lease, stands for it, and the orphans' sweep tells if that was wrong."""
    found = []
    for early in spans:
        for late in spans:
            if early["attempt"] >= late["attempt"] or early["ended"] is None:
                continue
            same = early["host"] == late["host"]
            over_s = early["ended"] - late["began"]
            if over_s > (0.0 if same else _CLOCKS_S):
                found.append(
                    f"attempt {early['attempt']} on {early['host']} ended {over_s:.1f} s after attempt "
                    f"{late['attempt']} began on {late['host']}"
                )
    return found


def _bits(seen: Evidence) -> list[str]:
    if seen.expected_digest is None or seen.digest == seen.expected_digest:
        return []
    return [f"the result is {seen.digest}, an undisturbed run ends with {seen.expected_digest}"]
