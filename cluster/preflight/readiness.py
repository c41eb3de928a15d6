"""Is this node ready for this attempt? The part of the preflight that depends on the job, run by the node's agent.

Each answer is one sentence that names the host. What is definite (a folder that is not there) is the job's
configuration; what may be otherwise in a minute (a full disk, a file server that does not answer) is infrastructure.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from cluster import ascend
from cluster.launch import LaunchPlan
from cluster.preflight.facts import code_digest, free_bytes, installed_folders
from jobs.contract import Exit

_DEFINITE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)


def why_not_ready(plan: LaunchPlan, node_rank: int) -> tuple[str, Exit] | None:
    """What this node lacks for the attempt, and the exit code that says so; None if nothing."""
    host = socket.gethostname()
    here = code_digest(installed_folders())
    if plan.code and here != plan.code:
        return (
            f"{host} runs other code of rexnet-orchestrator ({here[:12] or 'none'}) than the control plane "
            f"({plan.code[:12]})",
            Exit.INFRASTRUCTURE,
        )
    free = free_bytes(plan.directory(node_rank))
    if free < plan.min_free_bytes:
        return (
            f"{host} has {free / 2**20:.0f} MiB free for {plan.work_root}, fewer than the "
            f"{plan.min_free_bytes / 2**20:.0f} of min_free_disk_gib",
            Exit.INFRASTRUCTURE,
        )
    if plan.npus_per_node and (given := ascend.misgiven(os.environ, plan.npus_per_node)):
        # The node's administrator has to mend it; another node may be in order.
        return (
            f"{given} on {host}, where Ray was to give the attempt {plan.npus_per_node} NPUs of its own: start Ray "
            "there without RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES",
            Exit.INFRASTRUCTURE,
        )
    if plan.data_dir and (seen := _seen(plan.data_dir, Path.is_dir, "a directory")):
        return f"data.dir {plan.data_dir} on {host}: {seen[0]}", seen[1]
    kind, name = plan.program[:2]
    if kind == "script" and (seen := _seen(name, Path.is_file, "a file")):
        return f"program.script {name} on {host}: {seen[0]}", seen[1]
    if kind == "module" and not can_import(name, plan.env.get("PYTHONPATH", "")):
        return f"program.module {name} on {host}: not installed there", Exit.CONFIG
    return None


def with_code(plan: LaunchPlan, node_rank: int) -> LaunchPlan:
    """The plan with the code that was brought to this node, if any was, first on the program's module path."""
    root = plan.code_root(node_rank)
    if not root:
        return plan
    path = [root, *filter(None, [plan.env.get("PYTHONPATH")])]
    return replace(plan, env={**plan.env, "PYTHONPATH": os.pathsep.join(path)})


def _seen(path: str, is_right: Callable[[Path], bool], what: str) -> tuple[str, Exit] | None:
    """What is wrong with a path; None if it is what it should be."""
    try:
        os.stat(path)
    except OSError as error:
        definite = error.errno in _DEFINITE
        return error.strerror or str(error), Exit.CONFIG if definite else Exit.INFRASTRUCTURE
    return None if is_right(Path(path)) else (f"not {what}", Exit.CONFIG)


def can_import(module: str, python_path: str = "") -> bool:
    """Does an import of `module` find it, in this interpreter or below `python_path`? Imports nothing: the packages
    above it are looked for, not run."""
    path: list[str] | None = None
    for end in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:end])
        spec = _find(name, path)
        if spec is None and path is None:
            spec = PathFinder.find_spec(name, [entry for entry in python_path.split(os.pathsep) if entry])
        if spec is None:
            return False
        if spec.submodule_search_locations is None:
            return end == module.count(".") + 1
        path = list(spec.submodule_search_locations)
    return True


def _find(name: str, path: list[str] | None) -> ModuleSpec | None:
    """As the import machinery does it, editable installs included."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None
