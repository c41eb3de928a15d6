"""JSON values, one a line, over a socket: between an agent and its supervisor, and between supervisors."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

_BACKLOG_BYTES = 1 << 20  # of unread lines to the agent, beyond which heartbeats are dropped


class Link:
    """JSON lines to and from the other side. Heartbeats may be dropped when it does not read; the rest waits."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock, self._in, self._out, self.closed = sock, b"", b"", False
        self.error: OSError | None = None  # why it is closed, where the other side has not closed it

    def send(self, message: dict[str, Any]) -> None:
        if message["kind"] == "heartbeat" and len(self._out) > _BACKLOG_BYTES:
            return
        self._out += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        try:
            while self._out and not self.closed:
                self._out = self._out[self.sock.send(self._out) :]
        except BlockingIOError:
            return
        except OSError as error:
            self.closed, self.error = True, error

    def receive(self, *, longest: int | None = None) -> list[dict[str, Any]]:
        """What has come in. ValueError for what is no JSON, or a line of more than `longest` bytes."""
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return []
        except OSError as error:
            data, self.error = b"", self.error or error
        if not data:
            self.closed = True
            return []
        *lines, self._in = (self._in + data).split(b"\n")
        if longest is not None and len(self._in) > longest:
            raise ValueError(f"a line of more than {longest} bytes")
        return [json.loads(line) for line in lines]


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
