"""Every rexctl command in the README and docs/ is run, on the counting program in the place of the quickstart."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path

from tests.support.rex import Rex, counting_spec

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a block marked `sh`."""
    found = []
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text()):
            found += [(page.name, line.split("#")[0].strip()) for line in block.splitlines() if line.strip()]
    return found


def test_every_command_in_the_docs_works() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    with tempfile.TemporaryDirectory(prefix="rex") as folder:
        rex = Rex(Path(folder, "home"))
        spec = counting_spec(Path(folder, "job.yaml"), "--steps", 40)
        job = ""
        try:
            for page, command in commands():
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
        finally:
            assert rex("down", "--now").returncode == 0
        assert job and rex.own_processes() == []
