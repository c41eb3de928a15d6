"""The line between the supervisors of a gang: a fault or a death on one node ends all of it at once, without Ray.

The supervisors of all other nodes connect to that of node 0, which hands on what it hears. Whoever ends well says so
first. A line that closes without that word is a death: the kernel closes it for a process that was killed, together
with everything that process owned. A line that the network has lost is none, and decides nothing: leases do.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import selectors
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.node.ending import say
from cluster.node.link import Link

_CONNECT_S = 2.0
_NOT_KNOWN = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ECONNABORTED}
_LONGEST = 4096  # bytes of a line, and of what a stranger may send
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 9))  # seconds, times


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What ends this node's part: a fault on, or the death of, another node."""

    node: int  # its rank
    hang: bool = False
    died: bool = False

    def __str__(self) -> str:
        if self.died:
            return f"the supervisor of node {self.node} ended without a word"
        return f"node {self.node} tells of a {'hang' if self.hang else 'fault'}"


class Peers:
    """The supervisors of the other nodes, as one of them sees them; none in a gang of one. Only `connect` waits."""

    def __init__(self, token: str, node_rank: int, nodes: int) -> None:
        self._token, self._rank, self._nodes = token, node_rank, nodes
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._lines: dict[int, Link] = {}  # by node rank: those who have shown that they belong here
        self._strangers: list[Link] = []
        self._told = False

    def accept_on(self, listener: socket.socket) -> None:
        """Be the one that all others connect to."""
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)

    def connect(self, address: tuple[str, int]) -> None:
        """Reach the supervisor of node 0, within two seconds. Without it faults are known by way of Ray alone."""
        try:
            sock = socket.create_connection(address, timeout=_CONNECT_S)
        except OSError as error:
            return say(f"no line to the supervisor of node 0 at {address[0]}:{address[1]}: {error}")
        self._lines[0] = line = self._attend(sock)
        return line.send({"kind": "hello", "node": self._rank, "proof": self._proof(self._rank)})

    def heard(self) -> Word | None:
        """The first of what has come in that ends this node's part, handed on to the others; None if nothing does."""
        bad: Word | None = None
        for key, _ in self._selector.select(0):
            if key.fileobj is self._listener:
                self._accept()
            elif key.data.sock.fileno() >= 0:  # not one that was just turned away
                bad = bad or self._read(key.data)
        if bad is not None:
            say(str(bad))
            self.tell(hang=bad.hang, of=bad.node)
        return bad

    def tell(self, *, hang: bool, of: int | None = None) -> None:
        """Tell the others of a fault, here by default. The first one counts."""
        if not self._told:
            self._told = True
            node = self._rank if of is None else of
            self._say_to_all({"kind": "fault", "node": node, "hang": hang})

    def close(self, *, good: bool) -> None:
        """This node's part is over. If it did not end well, the others hear that now at the latest."""
        if good:
            self._say_to_all({"kind": "done"})
        else:
            self.tell(hang=False)
        for line in [*self._lines.values(), *self._strangers]:
            self._forget(line)
        if self._listener is not None:
            self._listener.close()
        self._selector.close()

    # -- lines

    def _proof(self, node: int) -> str:
        """What only a supervisor of this attempt can say; the token itself is not sent."""
        return hmac.new(self._token.encode(), f"node {node}".encode(), hashlib.sha256).hexdigest()

    def _attend(self, sock: socket.socket) -> Link:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # so that no firewall on the way forgets it
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        line = Link(sock)
        self._selector.register(sock, selectors.EVENT_READ, line)
        return line

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # gone again
        if len(self._strangers) > self._nodes:
            self._forget(self._strangers[0])
        self._strangers.append(self._attend(sock))

    def _read(self, line: Link) -> Word | None:
        """What one line says; its end is a death unless that was announced, or is only the network's word."""
        node = next((node for node, known in self._lines.items() if known is line), None)
        try:
            messages = line.receive(longest=_LONGEST)
            for message in messages:
                if node is None:
                    node = self._welcome(line, message)
                elif message["kind"] == "done":
                    self._forget(line)
                    return None
                elif message["kind"] == "fault":
                    return Word(node=int(message["node"]), hang=bool(message["hang"]))
        except (ValueError, KeyError, TypeError) as error:
            say(f"a peer's line says what none should: {error!r}")
            self._forget(line)
            return None
        if not line.closed:
            return None
        self._forget(line)
        if node is None:
            return None
        if line.error is not None and line.error.errno in _NOT_KNOWN:
            say(f"the line to the supervisor of node {node} is lost: {line.error}")
            return None
        return Word(node=node, died=True)

    def _welcome(self, line: Link, message: Mapping[str, Any]) -> int:
        """The node rank of a stranger that belongs here; ValueError for another one."""
        node = int(message["node"])
        if not 0 < node < self._nodes or not hmac.compare_digest(str(message["proof"]), self._proof(node)):
            raise ValueError("not a supervisor of this attempt")
        self._strangers.remove(line)
        self._lines[node] = line
        return node

    def _say_to_all(self, message: dict[str, Any]) -> None:
        for line in self._lines.values():
            line.send(message)

    def _forget(self, line: Link) -> None:
        self._lines = {node: known for node, known in self._lines.items() if known is not line}
        self._strangers = [known for known in self._strangers if known is not line]
        self._selector.unregister(line.sock)
        line.sock.close()
