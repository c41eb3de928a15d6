"""Folders that appear whole or not at all, and how much of a download has come."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from jobs.errors import ConflictError, UserError

_LOOK_S = 0.2
_SECTOR = 512  # the unit of st_blocks


@contextmanager
def growing(target: Path, on_bytes: Callable[[int], None]) -> Iterator[None]:
    """Tells `on_bytes`, from a thread of its own, how many bytes have come of a download to `target`.

    It is written beside, as `.<name>.*.tmp`, before it gets its name (`cluster.storage.chain.content`). Counts what is
    written, not how far: a file whose parts come in any order has holes.
    """
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_S):
            on_bytes(_written(target))

    thread = threading.Thread(target=look, name="rex-growing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` and what is missing above it; on any error those that are still empty are removed again.

    Raises:
        UserError: it cannot be made.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", hint="name another folder") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # somebody else has put something there: it stays, and so does what is above it
            for path in missing:
                path.rmdir()
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill; at the end it is `target`, durable, and on any error there is nothing.

    Raises:
        ConflictError: `target` is there and is no empty folder.
        UserError: it cannot be written.
    """
    target = Path(os.path.realpath(target))
    if not _is_free(target):
        raise ConflictError(f"{target} is there and is no empty folder", hint="name another, or one that is empty")
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    with made_folder(target.parent):
        try:
            aside.mkdir()
        except OSError as error:
            raise UserError(f"cannot write to {target.parent}: {error.strerror}", hint="name another folder") from error
        try:
            yield aside
            for path in [*aside.rglob("*"), aside]:
                _sync(path)
            try:
                aside.rename(target)
            except OSError as error:
                raise UserError(f"cannot make {target}: {error.strerror}", hint="did it appear meanwhile?") from error
            _sync(target.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # renamed already, or of no use to anybody


def _is_free(target: Path) -> bool:
    try:
        return not target.exists() or (target.is_dir() and not any(target.iterdir()))
    except OSError as error:
        raise UserError(f"cannot look at {target}: {error.strerror}", hint="name another folder") from error


def _written(target: Path) -> int:
    total = 0
    for path in target.parent.glob(f".{escape(target.name)}.*.tmp"):
        with suppress(FileNotFoundError):
            seen = path.stat()
            total += min(seen.st_size, seen.st_blocks * _SECTOR)
    return total


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
