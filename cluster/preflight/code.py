"""Our own packages as one archive, named by its digest: what a node gets that has other ones.

Unpacked to `<work_root>/code/<digest>` on the node and put first on PYTHONPATH of agent, supervisor, shim and program.
Why not through Ray's py_modules: docs/decisions/0007-code-by-digest.md. As in `facts`, what runs on the
node is pickled by value.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cluster.preflight.facts import PACKAGES, code_digest, installed_folders, package_files

_DISTRIBUTION = "rexnet-orchestrator"


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
    """Put our packages to `<work_root>/code/<digest>` on this node and return that path. Idempotent; several nodes may
    share the folder. OSError if it cannot be written or does not hold what it should."""
    target = Path(work_root) / "code" / digest
    if code_digest(folders_below(target)) == digest:
        return str(target)
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
    return str(target)
