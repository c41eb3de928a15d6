"""May a node be used? From what its preflight saw to a verdict: pure functions over values.

A node that differs from the control plane in what decides a result, or lacks what every attempt needs, is left out,
with one sentence that names it. A node that has not answered is no worse than that: it is not used until it has.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cluster.preflight.code import Code, read_code
from cluster.preflight.facts import installed_packages, lock_digest
from jobs import ascend
from orchestrator.settings import Home

# What may change a training step's result; other distributions that differ are listed, not judged.
DECISIVE = ("mindspore", "numpy", "opencv-python-headless", "pillow")
VALID_S = 900.0  # an answer counts for so long; a node that gives no newer one is not used
_SHOWN = 20  # differing distributions of a node that are kept
_GIB = float(1 << 30)

Facts = Mapping[str, Any]


class Standing(str, Enum):
    USABLE = "usable"
    LEFT_OUT = "left out"
    UNKNOWN = "not looked at"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a node may be used, and one sentence that names its host if not."""

    standing: Standing
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What every node is held against: the control plane's own Python, distributions and code, and the settings."""

    python: str
    packages: Mapping[str, str]
    code: Code
    work_root: str
    min_free_bytes: int

    @classmethod
    def here(cls, home: Home) -> Wanted:
        """As this process and these settings have it."""
        from platform import python_version_tuple

        return cls(
            python=".".join(python_version_tuple()[:2]),
            packages=installed_packages(),
            code=read_code(),
            work_root=home.work_root,
            min_free_bytes=home.settings.min_free_bytes,
        )

    @property
    def signature(self) -> str:
        """Changes with anything that a verdict depends on."""
        parts = (self.python, lock_digest(self.packages), self.code.digest, self.work_root, self.min_free_bytes)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def problem(facts: Facts, wanted: Wanted) -> str:
    """Why this node cannot be used, in one sentence that names it; "" if it can."""
    found = []
    if facts["python"] != wanted.python:
        found.append(f"Python {facts['python']} instead of {wanted.python}")
    for name in DECISIVE:
        if name in wanted.packages and facts["packages"].get(name) != wanted.packages[name]:
            found.append(_differs(name, facts["packages"], wanted.packages))
    if facts["free_bytes"] < wanted.min_free_bytes:
        free, least = (value / _GIB for value in (facts["free_bytes"], wanted.min_free_bytes))
        found.append(f"{free:.2f} GiB free for {wanted.work_root} instead of at least {least:.2f} (min_free_disk_gib)")
    elif facts["unwritable"]:
        found.append(f"a work_root {wanted.work_root} that cannot be written ({facts['unwritable']})")
    found += [f"NPU {number} in state {facts['npus'][number]}" for number in ascend.unfit(facts["npus"])]
    return f"{facts['host']} has {', and '.join(found)}" if found else ""


def differences(here: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Every distribution of either side that the other one has not, or in another version; in words."""
    names = sorted(name for name in {*here, *wanted} if here.get(name) != wanted.get(name))
    return [_differs(name, here, wanted) for name in names]


def _differs(name: str, here: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    shown = "MindSpore" if name == "mindspore" else name
    if name not in here:
        return f"no {shown} instead of {wanted[name]}"
    return f"{shown} {here[name]} instead of {wanted.get(name, 'none')}"


def record(facts: Facts, wanted: Wanted, *, asked_at: float, answered_at: float, code_root: str) -> dict[str, Any]:
    """What the store keeps of a preflight: the facts without the long lists, and what they were held against.

    `asked_at` and `answered_at` are by the control plane's clock; the node read its own somewhere between the two.
    """
    versions = {name: facts["packages"].get(name) for name in (*DECISIVE, "ray")}
    others = differences(facts["packages"], wanted.packages)
    kept = ("code", "lock", "ascend", "npus", "free_bytes", "shm_bytes", "took_s")
    return {
        **{name: facts[name] for name in kept},
        "looked_at": asked_at,
        "wanted": wanted.signature,
        "versions": {"python": facts["python"], **versions},
        "differs": others[:_SHOWN],
        "num_differs": len(others),
        "code_root": code_root,
        "clock_skew_s": facts["clock"] - (asked_at + answered_at) / 2,
        "clock_skew_error_s": abs(answered_at - asked_at) / 2,
    }


def survey(rows: Iterable[Mapping[str, Any]], *, now: float) -> dict[str, Verdict]:
    """The verdict on each row of the store's nodes, by node id."""
    rows = list(rows)
    odd = _odd_ascend(rows)
    verdicts = {row["id"]: _verdict(row, odd, now) for row in rows}
    usable = {node for node, verdict in verdicts.items() if verdict.standing is Standing.USABLE}
    return {**verdicts, **{node: verdict for node, verdict in _former(rows).items() if node in usable}}


def _verdict(row: Mapping[str, Any], odd: Mapping[str, str], now: float) -> Verdict:
    seen = row["preflight"] or {}
    looked_at = seen.get("looked_at")
    if not row["alive"]:
        return Verdict(standing=Standing.LOST, reason=f"{row['host']} is gone from the Ray cluster")
    if looked_at is None or now - looked_at > VALID_S:
        since = f" since {time.strftime('%H:%M:%S', time.localtime(looked_at))}" if looked_at else " yet"
        why = f": {seen['unanswered']}" if seen.get("unanswered") else ""
        return Verdict(standing=Standing.UNKNOWN, reason=f"{row['host']} has not answered the preflight{since}{why}")
    reason = row["problem"] or odd.get(row["id"], "")
    return Verdict(standing=Standing.LEFT_OUT if reason else Standing.USABLE, reason=reason)


def _former(rows: list[Mapping[str, Any]]) -> dict[str, Verdict]:
    """Nodes that Ray still lists although their host has booted since: a gang that is placed there waits in vain.

    Ray takes its time (its health check's) to miss a node that went without a word, and lists the same host's new one
    beside it. Several Ray nodes on one host that has not booted since are as good as one.
    """
    by_address: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["alive"]:
            by_address.setdefault(row["address"], []).append(row)
    former = {}
    for same in by_address.values():
        known = [row for row in same if (row["preflight"] or {}).get("looked_at") is not None]
        newest = max(known, key=lambda row: float(row["preflight"]["looked_at"]), default=None)
        for row in known:
            host = row["host"]
            if newest is not None and row["incarnation"] != newest["incarnation"]:
                reason = f"{host} has booted since, and Ray lists it a second time"
            elif len(known) < len(same):
                reason = f"{host} may have booted since: Ray lists it a second time"
            else:
                continue
            former[row["id"]] = Verdict(standing=Standing.UNKNOWN, reason=reason)
    return former


def _odd_ascend(rows: list[Mapping[str, Any]]) -> dict[str, str]:
    """Nodes whose driver, firmware or CANN is not what most nodes with NPUs have. On a tie nobody is the odd one."""
    have = {row["id"]: (row["host"], (row["preflight"] or {}).get("ascend") or {}) for row in rows if row["alive"]}
    counts = Counter(json.dumps(versions, sort_keys=True) for _, versions in have.values() if versions)
    ranked = counts.most_common(2)
    if len(ranked) < 2 or ranked[0][1] == ranked[1][1]:
        return {}
    usual = json.loads(ranked[0][0])
    odd = {}
    for node_id, (host, versions) in have.items():
        other = [name for name in usual if versions and versions.get(name) != usual[name]]
        if other:
            words = ", and ".join(f"{name} {versions.get(name)} instead of {usual[name]}" for name in other)
            odd[node_id] = f"{host} has {words}, which most nodes with NPUs have"
    return odd
