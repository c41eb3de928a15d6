"""What a rank says of itself while it runs: heartbeats to whoever listens, and the report it leaves at its end."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from jobs.contract import ENV_REPORT_DIR, Heartbeat, HeartbeatSender, Phase, Report, write_report

MIN_INTERVAL_S = 0.2


class Pulse:
    """Keeps the newest `Heartbeat` and sends it: every change of phase at once, else at most five a second."""

    def __init__(self, rank: int) -> None:
        self._sender = HeartbeatSender()
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = time.monotonic()
        self._sent = 0.0
        self._lock = threading.RLock()  # the checkpoint and tracking threads have news too
        self.now = Heartbeat(rank=rank, pid=os.getpid())

    def enter(self, phase: Phase, **changes: Any) -> None:
        """From now on the rank is in that phase."""
        with self._lock:
            self._settle()
            self.now = replace(self.now, phase=phase.value, **changes)
            self._send()

    def update(self, *, at_once: bool = False, **changes: Any) -> None:
        """Change fields of the heartbeat."""
        with self._lock:
            self.now = replace(self.now, **changes)
            if at_once or time.monotonic() - self._sent >= MIN_INTERVAL_S:
                self._settle()
                self._send()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Seconds inside count as "checkpoint_stall", not as the phase's own."""
        began = time.monotonic()
        yield
        with self._lock:
            stalled = time.monotonic() - began
            self._seconds["checkpoint_stall"] += stalled
            self._since += stalled

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Seconds inside count as "data_wait" besides: a rank with a slow disk is told by them."""
        began = time.monotonic()
        yield
        with self._lock:
            self._seconds["data_wait"] += time.monotonic() - began

    def report(self, reason: str) -> None:
        """Send the last heartbeat and leave it, with the reason of the end, where the environment says."""
        with self._lock:
            self._settle()
            self._send()
        directory = os.environ.get(ENV_REPORT_DIR)
        if directory:
            write_report(directory, Report(heartbeat=asdict(self.now), reason=reason), self.now.rank)

    def _settle(self) -> None:
        now = time.monotonic()
        self._seconds[self.now.phase] += now - self._since
        self._since = now

    def _send(self) -> None:
        self.now = replace(self.now, seconds={k: round(v, 3) for k, v in self._seconds.items()}, at=time.time())
        self._sent = time.monotonic()
        self._sender.send("heartbeat", self.now)
