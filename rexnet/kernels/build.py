"""Builds the C++ kernels of `src/` into one shared library, once for each state of the sources and the compiler.

    python -m rexnet.kernels.build      # builds if need be and prints the library's path

The library's name holds a hash of sources, flags and compiler version, so a change of any of them builds anew, and it
is written aside and renamed, so ranks that build at once do not meet. It lies in `rexnet/kernels/lib` where that can
be written, else in `$XDG_CACHE_HOME/rexnet` or `~/.cache/rexnet`.

On x86-64 the kernels are compiled for three instruction sets (x86-64, -v3: AVX2 with FMA, -v4: AVX-512), among which
the library chooses when it is loaded; elsewhere for the compiler's baseline.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
# nodelete: MindSpore closes a library with the last operator of it, and our threads would be without their code.
STAYS = "-Wl,-z,nodelete"
FLAGS = ("-std=gnu++17", "-O3", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wno-psabi")
X86_TARGETS = {"baseline": "x86-64", "x86_64_v3": "x86-64-v3", "x86_64_v4": "x86-64-v4"}  # namespace: -march


class BuildError(Exception):
    """The kernels cannot be built here; the message says why in one line."""


def find_compiler() -> str:
    """$CXX, else g++, c++ or clang++ from PATH. BuildError if there is none."""
    for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise BuildError("no C++ compiler: install g++ or set CXX")


def describe_compiler(compiler: str) -> str:
    """The first line of its --version."""
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} --version failed: {error}") from error
    return done.stdout.partition("\n")[0]


def targets() -> dict[str, str]:
    """Namespace and -march of each instruction set to build for; an empty -march is the compiler's own choice."""
    return X86_TARGETS if platform.machine() == "x86_64" else {"baseline": ""}


def source_digest(compiler: str) -> str:
    """SHA-256 over sources, flags, instruction sets and the compiler's version, 64 hex digits."""
    digest = hashlib.sha256(repr((FLAGS, STAYS, targets(), describe_compiler(compiler))).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in {".cc", ".h"}:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where libraries are kept: beside the package if that can be written, else the user's cache."""
    beside = Path(__file__).parent / "lib"
    try:
        beside.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=beside):
            return beside
    except OSError:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = Path(base) / "rexnet"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def build() -> Path:
    """The library's path; compiles it (about ten seconds) if it is not there. BuildError with the cause if it fails."""
    compiler = find_compiler()
    try:
        library = cache_folder() / f"rexnet-kernels-{source_digest(compiler)[:16]}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                os.replace(_compile(compiler, Path(folder)), library)
    except OSError as error:
        raise BuildError(f"cannot write the kernels' library: {error}") from error
    return library


def _compile(compiler: str, folder: Path) -> Path:
    jobs = [
        [compiler, *FLAGS, *([f"-march={march}"] if march else []), f"-DREX_ISA={name}", "-c",
         str(SOURCES / "operators.cc"), "-o", str(folder / f"{name}.o")]
        for name, march in targets().items()
    ]  # fmt: skip
    with ThreadPoolExecutor() as threads:
        list(threads.map(_run, jobs))
    several = ["-DREX_X86_64"] if len(jobs) > 1 else []
    library = folder / "library.so"
    others = [str(SOURCES / f"{name}.cc") for name in ("dispatch", "flat", "pool", "update")]
    _run([compiler, *FLAGS, *several, "-shared", STAYS, *others, *(job[-1] for job in jobs), "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise BuildError(f"{command[0]} exits {done.returncode}: {first}")


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(f"rexnet.kernels.build: {error}")
