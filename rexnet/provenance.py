"""What made a checkpoint: versions of our code and of the libraries, for its manifest."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path


def library_versions(device: str) -> dict[str, str]:
    """Versions that may change a result's bits, and the kind of device."""
    names = ("mindspore", "numpy", "opencv-python-headless", "pillow")
    return {"python": platform.python_version(), "device": device, **{name: metadata.version(name) for name in names}}


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
