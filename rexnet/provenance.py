"""What made a checkpoint: versions of our code and of the libraries, for its manifest."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from jobs import ascend


def library_versions(device: str) -> dict[str, str]:
    """Versions that may change a result's bits, and the kind of device."""
    names = ("mindspore", "numpy", "opencv-python-headless", "pillow")
    versions = {"python": platform.python_version(), "device": device, **{n: metadata.version(n) for n in names}}
    return versions | (ascend_versions(Path(ascend.ROOT), os.environ) if device == "Ascend" else {})


def ascend_versions(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Versions of driver, firmware and CANN, from the files that their installers leave; "unknown" where there is none.

    The driver's and firmware's lie below `root`, CANN's below ASCEND_TOOLKIT_HOME: see `jobs.ascend`.
    """
    toolkit = Path(environment.get("ASCEND_TOOLKIT_HOME") or root / "ascend-toolkit" / "latest")
    installed = [path for path in sorted(toolkit.glob(ascend.TOOLKIT_FILE)) if path.is_file()]
    versions = {name: _version_in(root / path) for name, path in ascend.VERSION_FILES.items()}
    return {**versions, "cann": _version_in(installed[0]) if installed else ascend.UNKNOWN}


def _version_in(path: Path) -> str:
    try:
        return ascend.version_in(path.read_text(errors="replace"))
    except OSError:
        return ascend.UNKNOWN


def code_version() -> dict[str, str]:
    """Version of the package and, run from a checkout, its git commit and whether it was changed since."""
    try:
        code = {"version": metadata.version("rexnet-orchestrator")}
    except metadata.PackageNotFoundError:
        code = {"version": "unknown"}
    commit = _git("rev-parse", "HEAD")
    if commit is not None:
        code |= {"git": commit, "dirty": str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()}
    return code


def _git(*arguments: str) -> str | None:
    """Output of git in our checkout; None if there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            check=False,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
