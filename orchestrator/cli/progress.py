"""Bars on long transfers, and sizes as people read them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(num_bytes: float) -> str:
    """`47.9 MiB`"""
    for unit in _UNITS[:-1]:
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} {_UNITS[-1]}"


class Bar:
    """What has been done so far, on stderr; and lines of the result meanwhile, on stdout."""

    def __init__(self, progress: Progress, task: TaskID, of_bytes: bool) -> None:
        self._progress, self._task, self._of_bytes = progress, task, of_bytes

    def advance(self, done: int, total: int) -> None:
        told = f"{size(done)} of {size(total)}" if self._of_bytes else f"{done} of {total}"
        self._progress.update(self._task, completed=done, total=total, told=told)

    def print(self, line: str) -> None:
        """A line of the result. Where both go to one terminal, the bar is taken away first and drawn below it again."""
        self._progress.stop()
        print(line, flush=True)
        self._progress.start()


@contextmanager
def bar(what: str, total: int | None = None, *, of_bytes: bool = True) -> Iterator[Bar]:
    """A bar on stderr while the block runs, if that is a terminal that can move its cursor.

    Without a total, and until it first advances, it only shows that something goes on.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    told = TextColumn("{task.fields[told]}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=32), told, TimeRemainingColumn())
    console = Console(file=sys.stderr)
    # Rich would send what is printed meanwhile to its own console: results would land on stderr.
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_interactive, redirect_stdout=False
    ) as progress:
        yield Bar(progress, progress.add_task(what, total=total, told=""), of_bytes)
