"""What a node is and has, as plain values: looked at by a short task on that very node, before any job is placed there.

`cluster.gang` pickles this module's functions by value, so they run on a node that has an older wheel of ours, or none.
For that, they use the standard library and `jobs.ascend` only.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs import ascend

PACKAGES = ("cluster", "jobs", "rexnet")  # ours that run on nodes
SUFFIXES = (".py", ".cc", ".h", ".yaml")  # of files that decide what they do; what is built from them is not compared
_NPU_SMI_TIMEOUT_S = 10.0


def gather(work_root: str) -> dict[str, Any]:
    """All that the census wants to know of this node. Takes well under a second; `npu-smi`, where there is one, more.

    Returns:
        host, incarnation, python ("3.11"), packages (name -> version of every installed distribution), lock (sha256 of
        them), code (digest of our packages, "" if one is missing), ascend (driver, firmware, cann; empty without
        them), npus (number -> health; empty without `npu-smi`), free_bytes of `work_root`'s file system, unwritable
        (why `work_root` cannot be written, "" if it can), shm_bytes, clock (Unix time), took_s.
    """
    began = time.monotonic()
    packages = installed_packages()
    unwritable = _why_unwritable(work_root)
    return {
        "host": socket.gethostname(),
        "incarnation": incarnation(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "packages": packages,
        "lock": lock_digest(packages),
        "code": code_digest(installed_folders()),
        "ascend": ascend_versions(Path(ascend.ROOT), os.environ),
        "npus": npu_healths(),
        "free_bytes": free_bytes(work_root),
        "unwritable": unwritable,
        "shm_bytes": _shared_memory_bytes(),
        "clock": time.time(),
        "took_s": time.monotonic() - began,
    }


def incarnation() -> str:
    """What no two lives of this host share: the kernel's boot id and when its first process started (a container that
    starts anew keeps the boot id). The second is in clock ticks since boot, "?" where /proc hides it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        first = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        first = "?"
    return f"{boot}/{first}"


def installed_packages() -> dict[str, str]:
    """Version of every installed distribution by its normalised name; of two, the one that would be imported."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        about = distribution.metadata
        name = re.sub(r"[-_.]+", "-", about["Name"] or "").lower()
        if name:
            found.setdefault(name, about["Version"] or "unknown")
    return found


def lock_digest(packages: Mapping[str, str]) -> str:
    """SHA-256 over the sorted lines name==version, 64 hex digits."""
    return hashlib.sha256("\n".join(f"{name}=={packages[name]}" for name in sorted(packages)).encode()).hexdigest()


def installed_folders() -> dict[str, Path]:
    """Where each of our packages lies that this interpreter would import; what is missing is left out."""
    importlib.invalidate_caches()
    found = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = Path(next(iter(spec.submodule_search_locations)))
    return found


def package_files(folders: Mapping[str, Path]) -> dict[str, Path]:
    """The files of our packages that count, by their path relative to the packages' parent."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}": path
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES and path.is_file()
    }


def code_digest(folders: Mapping[str, Path]) -> str:
    """One SHA-256 over our packages' files and their paths, 64 hex digits; "" unless all packages are there."""
    if sorted(folders) != sorted(PACKAGES):
        return ""
    digest = hashlib.sha256()
    for name, path in sorted(package_files(folders).items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def ascend_versions(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Versions of driver, firmware and CANN ("unknown" where a file is missing); empty on a node without a driver."""
    if not (root / "driver").is_dir():
        return {}
    toolkit = Path(environment.get("ASCEND_TOOLKIT_HOME") or root / "ascend-toolkit" / "latest")
    files = {name: root / path for name, path in ascend.VERSION_FILES.items()}
    files["cann"] = next(iter(sorted(toolkit.glob(ascend.TOOLKIT_FILE))), toolkit / "none")
    texts = {name: path.read_text(errors="replace") if path.is_file() else "" for name, path in files.items()}
    return {name: ascend.version_in(text) for name, text in texts.items()}


def npu_healths() -> dict[str, str]:
    """Health of each NPU by its number, by `npu-smi info`; empty where there is none or it does not answer."""
    command = shutil.which("npu-smi")
    if command is None:
        return {}
    try:
        done = subprocess.run(
            [command, "info"], capture_output=True, text=True, timeout=_NPU_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}  # not knowing: no verdict about any device
    return ascend.healths_in(done.stdout)


def free_bytes(folder: str) -> int:
    """Bytes that an ordinary user can still write on the file system of `folder`, or of the nearest parent there is."""
    path = Path(folder)
    while not path.exists():
        path = path.parent
    system = os.statvfs(path)
    return system.f_bavail * system.f_frsize


def _why_unwritable(folder: str) -> str:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _shared_memory_bytes() -> int:
    """Size of /dev/shm, 0 without one."""
    try:
        system = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return system.f_blocks * system.f_frsize
