"""The provider's word on a host: is it gone for certain? Asked by a command of the settings, in the background."""

from __future__ import annotations

import logging
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

_LOG = logging.getLogger("rexctl.provider")
_TIMEOUT_S = 20.0
_AGAIN_S = 2.0


class Provider:
    """Runs `host_gone_command` with {host} and {address} filled in. Exit code 0: the host is switched off or deleted,
    and nothing on it runs. Anything else (also no answer in 20 s) is not knowing."""

    def __init__(self, command: Sequence[str] | None, *, steady: Callable[[], float] = time.monotonic) -> None:
        self._command, self._steady = tuple(command or ()), steady
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="provider")
        self._asked: dict[tuple[str, str], tuple[float, Future[bool]]] = {}  # the newest question, and when
        self._gone_at: dict[tuple[str, str], float] = {}  # when it was asked, if the answer was yes

    def is_gone(self, host: str, address: str, *, since: float) -> bool:
        """Has it said so when it was asked after `since` (by the steady clock)? Asks anew every two seconds, and never
        blocks. A host may come back, and be silent again later: what was said before counts for nothing."""
        if not self._command:
            return False
        key, now = (host, address), self._steady()
        asked_at, question = self._asked.get(key, (-math.inf, None))
        if question is not None and question.done():
            if question.result():
                self._gone_at[key] = asked_at
            else:
                self._gone_at.pop(key, None)
        if question is None or (question.done() and now - asked_at > _AGAIN_S):
            self._asked[key] = (now, self._pool.submit(self._is_off, host, address))
        return self._gone_at.get(key, -math.inf) > since

    def _is_off(self, host: str, address: str) -> bool:
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
