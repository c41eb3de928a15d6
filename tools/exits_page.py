"""Prints docs/exits.md from the table of exits: `python -m tools.exits_page > docs/exits.md`."""

from __future__ import annotations

import re
import signal

from cluster.outcome.exits import TABLE, Rule

_HEAD = """# What an end means

Written by `make docs` from the table in `cluster/outcome/exits.py`; a test compares the two, and another runs the table
on recorded ends (`tests/unit/recorded/exits`).

Every rank runs under a small shim that keeps its exit code or signal, its last lines, and whether the kernel killed
processes for memory meanwhile: in the rank's cgroup (`memory.events`, or `memory.oom_control` of cgroup v1), on the
host (`/proc/vmstat`), or by a line of the kernel's log where it may be read. Of the first process to fail, and over all
nodes of the first one that did not merely lose a peer, the first row that fits says what happened:

* its **kind** stands in `rexctl status` and `rexctl events` (with `--json` under `attempts[].end`, with rank, host,
  time and hint);
* its **cause** is the [budget](job-file.md) that it costs.

"""

_FOOT = """
Beside these, by what the control plane knows without any rank's word: `preempted`, `cancelled`, `time_limit`,
`host_lost` (cause `node_lost`), `hang`, and `infrastructure` when an agent, a supervisor or msrun itself was killed.

Rows with *no* in the last column are from CANN's and MindSpore's documentation and from other people's logs, cited in
the recorded files: they have not been seen on hardware by us.

**What cannot be told.** A container whose memory limit ends all its processes at once (`memory.oom.group`, which
Kubernetes sets) takes the shim and the supervisor along: the attempt ends as a lost agent. A program that catches an
error and exits with a code of its own is believed. MindSpore may end a worker that lost its peer by SIGTERM; a program
that takes SIGTERM for a wish to drain may then exit 75 (our first-fault rule is sooner: seconds against 30).
"""


def _sign(rule: Rule) -> str:
    signs = []
    if rule.scheduler:
        signs.append("msrun's scheduler process")
    if rule.code is not None:
        signs.append(f"exit code {rule.code}")
    if rule.signal is not None:
        signs.append(f"signal {int(rule.signal)} ({signal.Signals(rule.signal).name})")
    if rule.killed_in is not None:
        signs.append(f"the {rule.killed_in}'s count of processes killed for memory grew")
    if rule.words is not None:
        plain = re.sub(r"\(\?P<\w+>", "(", rule.words).replace("|", "\\|")
        signs.append(f"`{plain}`")
    return ", ".join(signs) or "anything else"


def page() -> str:
    rows = ["| kind | cause | sign | said | hint | seen by us |\n| --- | --- | --- | --- | --- | --- |\n"]
    for rule in TABLE:
        says = re.sub(r"\{(\w+)\}", r"*\1*", rule.says).replace("*cann*", " (*code*)") or "its own last line"
        seen = "yes" if rule.seen else "no"
        rows.append(f"| {rule.kind.value} | {rule.cause.value} | {_sign(rule)} | {says} | {rule.hint} | {seen} |\n")
    return "".join([_HEAD, *rows, _FOOT])


if __name__ == "__main__":
    print(page(), end="")
