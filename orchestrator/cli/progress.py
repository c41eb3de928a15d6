"""Bars on long transfers, and sizes as people read them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(num_bytes: float) -> str:
    """`47.9 MiB`"""
    for unit in _UNITS[:-1]:
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} {_UNITS[-1]}"


@contextmanager
def bar(what: str, total: int | None = None, *, of_bytes: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while the block runs, if that is a terminal; yields a function that takes (done, total).

    Without a total, and until the first call, it only shows that something goes on.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    told = TextColumn("{task.fields[told]}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=32), told, TimeRemainingColumn())
    with Progress(
        *columns, console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task(what, total=total, told="")

        def advance(done: int, of: int) -> None:
            count = f"{size(done)} of {size(of)}" if of_bytes else f"{done} of {of}"
            progress.update(task, completed=done, total=of, told=count)

        yield advance
