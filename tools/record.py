"""Turns recorded terminal output into a picture: `python -m tools.record LOG docs/demo.svg`.

Progress lines between the telling ones are thinned out; nothing else is changed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

_KEEP_EVERY = 6
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_PROGRESS = re.compile(r"^(running|queued|launching|backoff), ")


def thinned(lines: list[str]) -> list[str]:
    kept, run = [], 0
    for line in lines:
        run = run + 1 if _PROGRESS.match(line) else 0
        if run % _KEEP_EVERY in (0, 2):
            kept.append(line)
    return kept


def main() -> int:
    source, target = map(Path, sys.argv[1:3])
    lines = source.read_text().splitlines()
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=132, file=nowhere)
        console.print(Text("$ rexctl demo", style="bold"))
        for line in thinned(lines):
            indented = re.sub(r"^ +", lambda spaces: "\u00a0" * len(spaces.group()), line)
            console.print(Text(indented, style="" if not _PROGRESS.match(line) else "dim"))
    picture = console.export_svg(title="make demo (progress lines thinned out, home shown as ~)")
    target.write_text(_FONT_FACE.sub("", picture))  # it would be fetched from somebody else's server
    return 0


if __name__ == "__main__":
    sys.exit(main())
