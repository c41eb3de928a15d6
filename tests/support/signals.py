"""For whatever starts servers and hosts: a polite stop runs its clean-up."""

from __future__ import annotations

import signal


def end_tidily() -> None:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, so that every context manager ends what it began.

    Also in the background, where a shell has SIGINT ignored, for this process and for every command that it starts.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
