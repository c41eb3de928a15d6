"""Has anybody written to the database since one looked last? So that a submit or a cancel is acted on at once."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Engine


class Changes:
    """On SQLite, by its own count of other connections' commits. Elsewhere nothing is ever seen: rounds go by time."""

    def __init__(self, engine: Engine) -> None:
        self._version = 0
        self._connection: sqlite3.Connection | None = None
        if engine.url.get_backend_name() == "sqlite":
            self._connection = sqlite3.connect(f"file:{engine.url.database}?mode=ro", uri=True, timeout=0)
        self._version = self._read()

    @property
    def watched(self) -> bool:
        """Does `seen` know?"""
        return self._connection is not None

    def seen(self) -> bool:
        """Was anything committed since the last call? Not knowing is no."""
        version, self._version = self._version, self._read()
        return version != self._version

    def _read(self) -> int:
        if self._connection is None:
            return 0
        try:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.OperationalError:
            return self._version

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
