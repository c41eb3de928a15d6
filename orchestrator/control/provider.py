"""The provider's word on a host: is it gone for certain? Asked by a command of the settings, in the background."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

_LOG = logging.getLogger("rexctl.provider")
_TIMEOUT_S = 20.0
_AGAIN_S = 2.0


class Provider:
    """Runs `host_gone_command` with {host} and {address} filled in. Exit code 0: the host is switched off or deleted,
    and nothing on it runs. Anything else (also no answer in 20 s) is not knowing."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self._command = tuple(command or ())
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="provider")
        self._asked: dict[tuple[str, str], tuple[float, Future[bool]]] = {}

    def is_gone(self, host: str, address: str) -> bool:
        """What the last question said; asks anew now and then, and never blocks. A host may come back: the answer
        counts for as long as it is silent."""
        if not self._command:
            return False
        key = (host, address)
        asked_at, future = self._asked.get(key, (0.0, None))
        gone = future is not None and future.done() and future.result()
        if future is None or (future.done() and time.monotonic() - asked_at > _AGAIN_S):
            self._asked[key] = (time.monotonic(), self._pool.submit(self._ask, host, address))
        return gone

    def _ask(self, host: str, address: str) -> bool:
        command = [word.replace("{host}", host).replace("{address}", address) for word in self._command]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _LOG.warning("action=ask_provider host=%s: %s", host, error)
            return False
        if done.returncode not in (0, 1):
            said = (done.stderr or done.stdout).strip().splitlines()
            _LOG.warning("action=ask_provider host=%s exit=%d: %s", host, done.returncode, said[-1] if said else "")
        return done.returncode == 0
