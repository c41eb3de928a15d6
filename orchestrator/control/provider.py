"""The provider's word on a host: is it gone for certain? Asked by a command of the settings, in the background."""

from __future__ import annotations

import logging
import math
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

_LOG = logging.getLogger("rexctl.provider")
_TIMEOUT_S = 20.0
_AGAIN_S = 2.0
_FRESH_S = 10.0  # a loop that is held up may look so late


class Provider:
    """Runs `host_gone_command` with {host} and {address} filled in. Exit code 0: the host is switched off or deleted,
    and nothing on it runs. Anything else (also no answer in 20 s) is not knowing."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self._command = tuple(command or ())
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="provider")
        self._asked: dict[tuple[str, str], Future[tuple[bool, float]]] = {}

    def is_gone(self, host: str, address: str) -> bool:
        """What the last question said; asks anew now and then, and never blocks. A host may come back, and be silent
        again later: an old answer counts for nothing."""
        if not self._command:
            return False
        future = self._asked.get((host, address))
        gone, age_s = False, math.inf
        if future is not None:
            if not future.done():
                return False
            gone, answered_at = future.result()
            age_s = time.monotonic() - answered_at
        if age_s > _AGAIN_S:
            self._asked[host, address] = self._pool.submit(self._ask, host, address)
        return gone and age_s <= _FRESH_S

    def _ask(self, host: str, address: str) -> tuple[bool, float]:
        """The answer, and when (monotonic)."""
        return self._is_off(host, address), time.monotonic()

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
