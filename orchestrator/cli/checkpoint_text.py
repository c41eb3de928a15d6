"""How checkpoints read in a terminal: the table, one of them, verdicts, a collection."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.manifest import PREFIX
from orchestrator.cli.progress import size

if TYPE_CHECKING:
    from cluster.storage.chain.gc import Collected
    from orchestrator.checkpoints.listing import Found
    from orchestrator.checkpoints.verdicts import Verdict

_LEFT = ("STATE", "SAVED", "MANIFEST")  # columns of words; numbers stand to the right
_NUM_ALIKE = 5  # of more checkpoints that are kept for the same reason the number is enough


def short(name: str) -> str:
    """`000002-000000120`, which every verb takes for the manifest."""
    return name.removeprefix(PREFIX).removesuffix(".json")


def table(found: Sequence[Found]) -> str:
    """One line each, newest first, and below it what is wrong with those that are not in order."""
    rows = []
    for one in found:
        manifest = one.manifest
        top1 = manifest.metrics.get("top1") if manifest else None
        rows.append({
            "STEP": f"{one.step}", "EPOCH": f"{manifest.epoch}" if manifest else "", "ATTEMPT": f"{one.attempt}",
            "STATE": one.state + " *" * one.resumes, "SIZE": size(one.size_bytes) if manifest else "",
            "TOP-1": "" if top1 is None else f"{top1:.4f}",
            "SAVED": _when(manifest.created_at) if manifest else "", "MANIFEST": short(one.name),
        })  # fmt: skip
    width = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    width["TOP-1"] *= any(row["TOP-1"] for row in rows)
    shown = [{name: name for name in width}, *rows]
    lines = [
        "  ".join(
            row[name].ljust(wide) if name in _LEFT else row[name].rjust(wide) for name, wide in width.items() if wide
        ).rstrip()
        for row in shown
    ]
    if any(one.resumes for one in found):
        lines.append("* where the next attempt begins, if its files verify")
    lines += [f"{short(one.name)}: {one.reason}" for one in found if one.reason]
    return "\n".join(lines)


def details(store: str, one: Found) -> str:
    """All of the manifest, and where its files lie."""
    from orchestrator.checkpoints.listing import RETIRED, shared_with

    manifest = one.readable()
    lines = [
        _line("manifest", one.name), _line("", f"sha256 {manifest.sha256()}"), _line("", f"in {store}"),
        _line("job", manifest.job), _line("state", one.state + ", the next attempt resumes it" * one.resumes),
    ]  # fmt: skip
    if one.reason:
        lines.append(_line("", one.reason))
    lines += [
        _line("saved", f"{_when(manifest.created_at)}, attempt {manifest.attempt}"),
        _line("step", f"{manifest.step}, epoch {manifest.epoch}, {manifest.samples} samples"),
        _line("parent", manifest.parent or "none: the first of its chain"),
    ]
    if manifest.metrics:
        lines.append(_line("metrics", ", ".join(f"{name} {value:g}" for name, value in manifest.metrics.items())))
    for entry in manifest.files:
        shared = shared_with(entry, manifest)
        gone = ", retired" if one.state == RETIRED and not entry.history else ""
        lines.append(_line("file", f"{entry.name}, {size(entry.size_bytes)}{', record' * entry.history}{gone}"))
        lines.append(_line("", f"sha256 {entry.sha256}"))
        lines.append(
            _line("", f"in {entry.key.rpartition('/')[0]}/{f', shared with {short(shared)}' if shared else ''}")
        )
    lines.append(_line("ranks", f"{manifest.world_size}, seed {manifest.seed}{_cpus(manifest.cpus)}"))
    lines.append(_line("config", f"sha256 {manifest.config_sha256}"))
    lines += _lines("code", _pairs(manifest.code)) + _lines("versions", _pairs(manifest.versions))
    lines.append(_line("certificate", manifest.certificate or "none"))
    lines.append(_line("nonce", manifest.nonce))
    return "\n".join(lines)


def verdict_lines(given: Verdict) -> str:
    """A line for the checkpoint, and one for each thing that is wrong with it."""
    from orchestrator.checkpoints.listing import RETIRED

    one = given.checkpoint
    head = f"{short(one.name)}  {'damaged' if given.damaged else 'whole':<8}  step {one.step}"
    if given.damaged:
        return "\n".join([head, *(f"  {problem}" for problem in given.problems)])
    record = "its record, " * (one.state == RETIRED)
    return f"{head}, {record}{len(one.files)} file{'s' * (len(one.files) != 1)}, {size(one.size_bytes)}"


def collection(done: Collected, *, dry_run: bool) -> str:
    """What is kept and why, what lost its state, what was deleted; or would be."""
    reasons = Counter(done.kept.values())
    many = {reason: number for reason, number in reasons.items() if number > _NUM_ALIKE}
    lines = [f"kept      {number} checkpoints: {reason}" for reason, number in many.items()]
    for name, reason in sorted(done.kept.items(), reverse=True):
        if reason not in many:
            lines.append(f"kept      {short(name)}  {reason}")
    lines += [f"{'to go' if dry_run else 'retired':<8}  {short(name)}" for name in reversed(done.retired)]
    verb = "would delete" if dry_run else "deleted"
    uploads = f" and {len(done.leftovers)} unfinished uploads" if done.leftovers else ""
    lines.append(f"{verb} {len(done.objects)} object{'s' * (len(done.objects) != 1)}{uploads}, {size(done.size_bytes)}")
    if done.unsettled:
        lines.append(f"left alone {done.unsettled} that an attempt may be about to name")
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"{name:<12} {value}".rstrip()


def _lines(name: str, values: Sequence[str]) -> list[str]:
    return [_line(name if not number else "", value) for number, value in enumerate(values)]


def _pairs(values: Mapping[str, str]) -> list[str]:
    return [f"{name} {value}" for name, value in values.items()]


def _cpus(cpus: tuple[int, ...]) -> str:
    return f", CPUs {','.join(map(str, cpus))} of rank 0" if cpus else ""


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
