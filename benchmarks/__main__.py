"""`python -m benchmarks [NAME...]`: run the benchmarks and write docs/benchmarks.md, or its parts that were named.

Exit code 1 if a limit was not kept that we set ourselves.
"""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.pairs import HEADER, Result
from benchmarks.step import torch_python
from rexnet import kernels
from tests.support.signals import end_tidily

ALL = ("step", "pipeline", "first_step", "start", "stall", "transfer", "outage", "hosts")
_HEAD = "# Benchmarks\n\nWritten by `make bench`; every ratio is of pairs measured in turn in one run.\n"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def machine() -> str:
    """What this ran on, in a line."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("mindspore", "ray", "mlflow", "numpy", "opencv-python-headless")
    )
    python = torch_python()
    if python is not None:
        asked = [python, "-c", "import torch; print(torch.__version__)"]
        packages += f", torch {subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()}"
    instructions = kernels.instruction_set()
    return f"{os.cpu_count()} CPUs ({model}, {instructions}), Python {platform.python_version()}, {packages}"


def write_section(name: str, rows: list[str]) -> None:
    """Put the newest run of one benchmark in its place on the page; the others' stay, each with its own date."""
    text = PAGE.read_text() if PAGE.exists() else ""
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    sections[name] = f"\n{date.today().isoformat()}: {machine()}.\n\n{HEADER}\n" + "\n".join(rows) + "\n"
    PAGE.write_text(_HEAD + "".join(f"\n## {known}\n{sections[known]}" for known in ALL if known in sections))


def main() -> int:
    end_tidily()
    broken = []
    for name in sys.argv[1:] or ALL:
        rows = []
        for result in importlib.import_module(f"benchmarks.{name}").run():
            rows.append(result.row())
            if isinstance(result, Result) and result.kept is False:
                broken.append(result.name)
            print(rows[-1], flush=True)
        if rows:
            write_section(name, rows)
    print(f"wrote {PAGE}")
    for name in broken:
        print(f"limit not kept: {name}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
