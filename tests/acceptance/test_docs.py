"""Every rexctl command in the README and docs/ is run, on the counting program in the place of the quickstart."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.support.rex import Rex, counting_spec

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> dict[str, str]:
    """Each command of a block marked `sh` and the first page that has it; `down` comes last, wherever it stands."""
    found: dict[str, str] = {}
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text()):
            for line in block.splitlines():
                if command := line.split("#")[0].strip():
                    found.setdefault(command, page.name)
    return {command: found[command] for command in sorted(found, key=lambda command: command == "rexctl down")}


def test_every_command_in_the_docs_works(rex: Rex, tmp_path: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    spec = counting_spec(tmp_path / "job.yaml", "--steps", 40)
    job = ""
    for command, page in commands().items():
        words = shlex.split(command)
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, (page, command)
            continue
        assert words[0] == "rexctl", (page, command, "a block marked sh holds rexctl and make only")
        if words[1] == "demo":
            continue  # tests/acceptance/test_demo.py
        done = rex(*(str(spec) if w.endswith(".yaml") else job if w == "JOB" else w for w in words[1:]))
        conflicts = ("preempt", "cancel", "resume")  # on a job that has ended: told so, exit 2
        allowed = (0, 1, 2) if words[1] in conflicts else (0,)
        assert done.returncode in allowed and "Traceback" not in done.stderr, (page, command, done.stderr)
        if words[1] == "submit" and "--dry-run" not in words:
            job = done.stdout.strip()
            rex.finish(job)
    assert job and words[1] == "down" and rex.own_processes() == []
