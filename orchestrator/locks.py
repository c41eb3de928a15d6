"""A lock between processes of one machine: a file under flock, free again when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ASK_S = 0.05


class LockHeld(Exception):
    """Another process holds the lock."""


@contextmanager
def holding(path: Path, *, wait_s: float | None = None) -> Iterator[None]:
    """Hold the lock of that file, which is made if it is not there, and its folder with it.

    wait_s: how long another holder is waited for, in seconds; None for as long as it takes.

    Raises:
        LockHeld: somebody else held it all that time. Nothing was done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # children that exec another program do not get it
    try:
        if wait_s is None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        else:
            _try_for(handle, path, wait_s)
        yield
    finally:
        os.close(handle)


def _try_for(handle: int, path: Path, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise LockHeld(f"another process holds {path}") from None
            time.sleep(_ASK_S)
