"""Reading lines from a socket with a limit on silence."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator


def read_lines(link: socket.socket, *, silent_s: float) -> Iterator[bytes | None]:
    """Each line as it comes; ends when the other side has closed, or with None once it said nothing for `silent_s`.

    What has come in while this process itself was stopped is read before the silence is judged.
    """
    link.settimeout(1.0)
    pending, heard = b"", time.monotonic()
    while True:
        try:
            data = link.recv(65536)
        except TimeoutError:
            if time.monotonic() - heard > silent_s:
                yield None
                return
            continue
        except OSError:
            return
        if not data:
            return
        heard = time.monotonic()
        *lines, pending = (pending + data).split(b"\n")
        yield from lines
