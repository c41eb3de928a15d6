"""Our own packages as one archive, named by its digest: what a node gets that has other ones.

Unpacked to `<work_root>/code/<digest>` on the node and put first on PYTHONPATH of agent, supervisor, shim and program.
Why not through Ray's py_modules: docs/decisions/0007-code-by-digest.md. As in `facts`, what runs on the
node is pickled by value.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cluster.preflight.facts import PACKAGES, code_digest, installed_folders, package_files

_DISTRIBUTION = "rexnet-orchestrator"
_UNUSED_S = 86400.0  # the census asks for the code that it wants every five minutes, and that makes it new again


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Our packages as they were when they were read. `archive` is a zip of them, the same bytes for the same files."""

    digest: str
    archive: bytes


def read_code(folders: Mapping[str, Path] | None = None) -> Code:
    """Our own packages, as this process would import them."""
    folders = installed_folders() if folders is None else folders
    contents = {name: path.read_bytes() for name, path in package_files(folders).items()}
    contents |= _description()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents):
            archive.writestr(zipfile.ZipInfo(name), contents[name], zipfile.ZIP_DEFLATED)
    return Code(digest=code_digest(folders), archive=buffer.getvalue())


def _description() -> dict[str, bytes]:
    """Our wheel's metadata, so that a program that asks for our version is told the one that runs."""
    try:
        ours = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return {}  # run from a folder that was never installed
    text = ours.read_text("METADATA") or ""
    return {f"{_DISTRIBUTION.replace('-', '_')}-{ours.version}.dist-info/METADATA": text.encode()}


def folders_below(root: Path) -> dict[str, Path]:
    """Our packages below one folder; what is missing is left out."""
    return {name: root / name for name in PACKAGES if (root / name).is_dir()}


def unpack(archive: bytes, digest: str, work_root: str) -> str:
    """Put our packages to `<work_root>/code/<digest>` on this node and return that path; old ones that nobody uses go.

    Idempotent; several nodes may share the folder. OSError if it cannot be written or does not hold what it should.
    """
    target = Path(work_root) / "code" / digest
    if code_digest(folders_below(target)) != digest:
        _unpack(archive, digest, target)
    with suppress(OSError):  # another user's: then that one's processes make it new
        os.utime(target)
    remove_unused(target.parent, keep=digest)
    return str(target)


def _unpack(archive: bytes, digest: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            packed.extractall(aside)
        aside.chmod(0o755)
        if target.exists():  # damaged: whoever still runs from it has read what it needs, or fails by name
            os.replace(target, aside / "damaged")
        try:
            aside.rename(target)
        except OSError:
            if code_digest(folders_below(target)) != digest:  # else somebody else was faster
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(target / "damaged", ignore_errors=True)
    if code_digest(folders_below(target)) != digest:
        raise OSError(f"{target} does not hold what was sent")


def remove_unused(folder: Path, *, keep: str, unused_s: float = _UNUSED_S) -> None:
    """Remove from the folder of codes what nobody has asked for in `unused_s`, nor runs from (`in_use.hold_code`).

    Half unpacked folders count as well: whoever was at it is gone. What cannot be removed stays.
    """
    for path in folder.iterdir():
        if path.name == keep or path.is_symlink() or not path.is_dir():
            continue
        with suppress(OSError):  # held by somebody, gone by now, or another user's
            _remove_unused(path, unused_s)


def _remove_unused(path: Path, unused_s: float) -> None:
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - os.fstat(held).st_mtime > unused_s:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(held)
