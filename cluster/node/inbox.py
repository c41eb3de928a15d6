"""Where the ranks' shims and heartbeats are heard: a datagram socket whose name the environment tells."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

_SO_PASSCRED, _SCM_CREDENTIALS = 16, 2  # Linux; socket.SO_PASSCRED is there from Python 3.11 only


class Inbox:
    """An abstract unix socket; `sock` is readable when something has come."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_PASSCRED, 1)
        self.sock.setblocking(False)
        self.sock.bind("\0" + name)

    def receive(self) -> Iterator[tuple[bytes, int | None]]:
        """What has come from processes of our own user, and who sent it.

        The kernel tells the sender's process id as we see it; inside a PID namespace it has another. Anybody on this
        machine can send here: what another user sent is dropped.
        """
        while True:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return
            pid = uid = None
            for level, kind, body in ancillary:
                if level == socket.SOL_SOCKET and kind == _SCM_CREDENTIALS:
                    pid, uid, _ = struct.unpack("3i", body[:12])
            if uid == os.getuid():
                yield data, pid
