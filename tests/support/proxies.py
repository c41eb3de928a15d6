"""What stands between a client and a store in tests: a line that breaks, and an endpoint that keeps no promise."""

from __future__ import annotations

import http.client
import re
import socket
import socketserver
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar
from urllib.parse import urlsplit

_BLOCK = 64 << 10
Line = TypeVar("Line", bound="BreakingLine")
_PART = re.compile(rb"partNumber=(\d+)")


class BreakingLine(socketserver.ThreadingTCPServer):
    """Hands bytes through to the store; breaks a connection after as many bytes as `cuts_up`, `cuts_down` say.

    Each entry breaks one connection, the first that has carried so much (up: to the store). `parts_begun` counts, by
    number, the upload parts whose request has passed.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Line)
        target = urlsplit(upstream)
        self.upstream = (str(target.hostname), int(target.port or 80))
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.cuts_up: list[int] = []
        self.cuts_down: list[int] = []
        self.cuts_made = 0
        self.parts_begun: Counter[int] = Counter()
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self: Line) -> Line:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def breaks(self, cuts: list[int], carried: int) -> bool:
        with self.lock:
            if not cuts or carried < cuts[0]:
                return False
            cuts.pop(0)
            self.cuts_made += 1
            return True


class _Line(socketserver.BaseRequestHandler):
    server: BreakingLine

    def handle(self) -> None:
        with socket.create_connection(self.server.upstream) as store:
            down = threading.Thread(target=self._carry, args=(store, self.request, self.server.cuts_down, False))
            down.start()
            self._carry(self.request, store, self.server.cuts_up, True)
            down.join()

    def _carry(self, source: socket.socket, target: socket.socket, cuts: list[int], up: bool) -> None:
        carried = 0
        with suppress(OSError):  # the other direction broke the line
            while block := source.recv(_BLOCK):
                if up:
                    with self.server.lock:
                        self.server.parts_begun.update(int(number) for number in _PART.findall(block[:2000]))
                carried += len(block)
                if self.server.breaks(cuts, carried):
                    break
                target.sendall(block)
        for line in (source, target):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)


class LyingStore(ThreadingHTTPServer):
    """In front of a store that checks no signature (moto): ignores conditions, or lists what was there one look ago."""

    daemon_threads = True

    def __init__(self, upstream: str, *, ignores_conditions: bool = False, stale_listings: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Liar)
        self.upstream = urlsplit(upstream).netloc
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.ignores_conditions, self.stale_listings = ignores_conditions, stale_listings
        self.listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> LyingStore:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Liar(BaseHTTPRequestHandler):
    server: LyingStore
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        if self.server.ignores_conditions:
            headers = {name: value for name, value in headers.items() if name.lower() not in ("if-none-match",)}
        line = http.client.HTTPConnection(self.server.upstream, timeout=60)
        line.request(self.command, self.path, body, headers)
        got = line.getresponse()
        answer = (got.status, got.getheaders(), got.read())
        line.close()
        if self.server.stale_listings and self.command == "GET" and "list-type=2" in self.path:
            before = self.server.listings.get(self.path, answer)
            self.server.listings[self.path] = answer
            answer = before
        status, received, content = answer
        self.send_response(status)
        for name, value in received:
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        length = got.headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer

    def log_message(self, *_: object) -> None:
        """Quiet."""
