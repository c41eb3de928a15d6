"""Where a gang meets: address and ports of its first node (msrun's scheduler, the supervisors), and HCCL's ports.

A port is chosen outside the range from which the kernel gives ports to outgoing connections, so that no connection of
somebody else's sits on it by chance, and is held (bound, not listening) until msrun's scheduler listens there:
MindSpore binds with SO_REUSEADDR, which a held port allows and which keeps out everybody without it. What is left is a
server that binds the same port with SO_REUSEADDR in those seconds. Then the scheduler cannot listen, says so, and the
attempt ends as infrastructure ("port_taken" in `cluster.outcome.exits`); the next one takes another port.
"""

from __future__ import annotations

import ipaddress
import json
import random
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import SpecError

_SYSCTL = Path("/proc/sys/net/ipv4")
_LOWEST = 20000  # below are the well-known ports, Ray's (6379, 8265) and those of its workers (10002 to 19999)
_ENOUGH = 1000
_TRIES = 200
HCCL_PORTS = 32  # that HCCL takes from HCCL_IF_BASE_PORT on (16 before CANN 8.2)


class HeldPort:
    """A port that is kept from others until `release`; the scheduler can listen on it meanwhile."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port = address, port
        self._socket = socket.socket(_family(address))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((address, port))
        except OSError:
            self._socket.close()
            raise

    def listen(self, backlog: int) -> socket.socket:
        """Listen there oneself; the port is the caller's from now on."""
        self._socket.listen(backlog)
        return self._socket

    def release(self) -> None:
        self._socket.close()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def port_is_free(address: str, port: int) -> bool:
    """Can somebody listen there now? Connections of the past that only wait for stray packets do not count.

    True as well where the address is not this machine's: then nobody listens on it here.
    """
    with socket.socket(_family(address)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            return error.errno not in (98, 13)  # EADDRINUSE; EACCES: not ours to have
    return True


def candidate_ports(sysctl: Path = _SYSCTL) -> list[range]:
    """The ports from which a gang's are chosen: outside the kernel's own range, and not reserved by the administrator.

    All of the kernel's range if it leaves no room: a held port is never given to a connection.
    """
    low, high = (int(word) for word in (sysctl / "ip_local_port_range").read_text().split())
    path = sysctl / "ip_local_reserved_ports"
    reserved = path.read_text().strip() if path.exists() else ""
    free = [range(_LOWEST, max(_LOWEST, low)), range(max(_LOWEST, high + 1), 65536)]
    if sum(map(len, free)) < _ENOUGH:
        free = [range(_LOWEST, 65536)]
    for part in filter(None, reserved.split(",")):
        first, _, last = part.partition("-")
        free = [piece for span in free for piece in _without(span, int(first), int(last or first))]
    return [span for span in free if span]


def _without(span: range, first: int, last: int) -> list[range]:
    return [range(span.start, min(span.stop, max(span.start, first))), range(max(span.start, last + 1), span.stop)]


def hold_port(address: str, *, sysctl: Path = _SYSCTL) -> HeldPort:
    """A free port of `address`, held; OSError of the last try if there is none."""
    spans = candidate_ports(sysctl)
    last = OSError(f"no port of {address} could be had")
    for _ in range(_TRIES):
        span = random.choices(spans, weights=list(map(len, spans)))[0]
        port = random.choice(span)
        if not port_is_free(address, port):
            continue
        try:
            return HeldPort(address, port)
        except OSError as error:
            last = error
    raise last


def free_ports(address: str, count: int, *, sysctl: Path = _SYSCTL) -> int:
    """The first of `count` ports in a row that are free now; they are not held."""
    spans = [span for span in candidate_ports(sysctl) if len(span) >= count]
    for _ in range(_TRIES):
        span = random.choices(spans, weights=list(map(len, spans)))[0]
        first = random.randrange(span.start, min(span.stop, 65520) - count + 1)
        if all(port_is_free(address, port) for port in range(first, first + count)):
            return first
    raise OSError(f"no {count} free ports in a row on {address}")


@dataclass(frozen=True)
class Interface:
    """A network interface and one of its addresses."""

    name: str
    address: str


def interfaces() -> list[Interface]:
    """This machine's interfaces that are up, with their addresses, as `ip` tells them (msrun asks it too).

    None at all where there is no such command.
    """
    if shutil.which("ip") is None:
        return []
    done = subprocess.run(["ip", "-json", "addr", "show", "up"], capture_output=True, text=True, check=True)
    return [
        Interface(entry["ifname"], info["local"])
        for entry in json.loads(done.stdout)
        for info in entry.get("addr_info", [])
        if info.get("scope") != "link" and "local" in info
    ]


def choose(wanted: str | None, *, default: str, nodes: int, host: str, known: list[Interface]) -> Interface:
    """The interface over which the gang's nodes reach this one.

    Args:
        wanted: gang.interface: an interface's name, or a network as CIDR; None for the one that has `default`.
        default: this node's address as Ray knows it.
        known: what `interfaces` returns.

    Raises SpecError where there is none such, and where other nodes could not reach it: msrun starts its scheduler
    only where the address is local, so a loopback or NAT address has nodes wait for a scheduler that never comes.
    """
    if wanted is None and not known:
        found, seen = [Interface("", default)], ""  # nobody tells: Ray's word counts
    elif wanted is None:
        found = [entry for entry in known if entry.address == default]
        seen = f"{host} has no interface with the address {default}, under which Ray knows it"
    elif "/" in wanted:
        network = ipaddress.ip_network(wanted, strict=False)
        found = [entry for entry in known if ipaddress.ip_address(entry.address) in network]
        seen = f"{host} has no address in gang.interface {wanted}"
    else:
        found = [entry for entry in known if entry.name == wanted]
        seen = f"{host} has no interface {wanted} that is up and has an address (gang.interface)"
    usable = [entry for entry in found if nodes == 1 or not ipaddress.ip_address(entry.address).is_loopback]
    if not usable:
        if found:
            seen = f"{host} would meet the other nodes at {found[0].address}, which they cannot reach"
        there = ", ".join(f"{entry.name} {entry.address}" for entry in known) or "none"
        raise SpecError(f"{seen}; it has: {there}", hint="set gang.interface to a name or a network (CIDR) of these")
    return min(usable, key=lambda entry: ":" in entry.address)  # IPv4 where there is both
