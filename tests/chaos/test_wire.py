"""The bad cable that the faults put in: late, lossy, and still a cable."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import hosts as hosts_support
from tests.support.hosts import OUTSIDE, Hosts

_ASK = """
import socket, sys, time
for number in range(3):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(float(sys.argv[3]))
        sent = time.monotonic()
        asking.sendto(b"%d" % number, (sys.argv[1], int(sys.argv[2])))
        try:
            asking.recv(100)
        except TimeoutError:
            continue
        print(time.monotonic() - sent)
"""
_SEND = """
import hashlib, socket, sys
data = b"".join(hashlib.sha512(b"%d" % i).digest() for i in range(40000))
with socket.create_connection((sys.argv[1], 7077)) as line:
    line.sendall(data)
"""
_TAKE = """
import hashlib, socket
with socket.create_server(("", 7077)) as server:
    print("ready", flush=True)
    line, _ = server.accept()
    digest = hashlib.sha256()
    while data := line.recv(1 << 16):
        digest.update(data)
print(digest.hexdigest(), flush=True)
"""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    lacking = hosts_support.missing()
    if lacking is not None:
        pytest.skip(f"not run: hosts in network namespaces: {lacking}")
    with tempfile.TemporaryDirectory(prefix="rexhosts", dir="/var/tmp") as name, Hosts(Path(name), 2) as hosts:
        yield hosts


def echoes(hosts: Hosts, *, patience_s: float = 20.0) -> list[float]:
    """Seconds there and back of each of three datagrams from host 1 that came back from outside."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        outside.bind((OUTSIDE, 0))
        outside.settimeout(0.1)
        ask = ["python3", "-c", _ASK, OUTSIDE, str(outside.getsockname()[1]), str(patience_s)]
        asking = subprocess.Popen(hosts.command(1, ask), stdout=subprocess.PIPE)
        while asking.poll() is None:
            try:
                data, sender = outside.recvfrom(100)
            except TimeoutError:
                continue
            outside.sendto(data, sender)
        assert asking.stdout is not None
        with asking.stdout:
            return [float(line) for line in asking.stdout.read().split()]


def test_slow_cable_delays_and_loses_frames_and_keeps_every_byte_until_it_is_healed(hosts: Hosts) -> None:
    hosts.slow(1, delay_s=0.05, loss=0.03)
    answers = echoes(hosts)
    assert answers and min(answers) >= 0.1
    log = hosts.own(2) / "taken"
    taker = hosts.start(2, ["python3", "-c", _TAKE], log)
    deadline = time.monotonic() + 120
    while "ready" not in log.read_text():
        assert taker.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert hosts.run(1, ["python3", "-c", _SEND, hosts.address(2)]).returncode == 0
    assert taker.wait(60) == 0
    data = b"".join(hashlib.sha512(b"%d" % i).digest() for i in range(40000))
    assert log.read_text().split() == ["ready", hashlib.sha256(data).hexdigest()]
    hosts.heal(1)
    hosts.slow(1, delay_s=0.0, loss=1.0)
    assert echoes(hosts, patience_s=1.0) == []
    hosts.heal(1)
    assert len(echoes(hosts)) == 3
