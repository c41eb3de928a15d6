"""Several hosts on one machine, each with its own network address, process table, /tmp, home and shared memory.

Host I (from 1) answers at 10.77.0.(10+I), this machine at OUTSIDE. Needs root and iproute2.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

OUTSIDE = "10.77.0.1"
WORK = "/tmp/rexwork"  # a folder for attempts: every host's own, as its /tmp is
_WIRE = Path(__file__).with_name("wire.py")
_BRIDGE, _BRIDGE_MAC = "rexbr0", "02:00:0a:4d:00:01"  # else it takes one of its ports', and changes with them
_DISK = "rexdisk"  # how the mounts of a killed run are found again
_LOCK = Path(tempfile.gettempdir()) / "rexhosts.lock"
_END_S = 30.0  # for what was killed to be gone


def missing() -> str | None:
    """What keeps this machine from having hosts, None if nothing does."""
    if os.getuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs iproute2"
    probe = subprocess.run(["ip", "netns", "add", "rexprobe"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "rexprobe"], capture_output=True, check=False)
    return None if probe.returncode == 0 else f"needs network namespaces ({probe.stderr.strip()})"


def apart(command: Sequence[str], folder: Path) -> list[str]:
    """The words that run a command on this machine as if it were another one: with a network of its own, and `folder`
    for temporary files, so that its hosts are in nobody's way. Nobody finds them from outside: it is ended politely
    when we end, however that is, and takes them along."""
    script = (
        "set -e; ip link set lo up; mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; mount -t sysfs sysfs /sys; "
        'exec "$@"'
    )
    spaces = ["unshare", "--net", "--mount", "--propagation", "private"]
    return ["setpriv", "--pdeathsig", "TERM", "env", f"TMPDIR={folder}", *spaces, "bash", "-c", script, "-", *command]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _words(*command: str) -> list[str]:
    """What a command prints; nothing if it fails."""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.split()


def _end_all(space: str) -> None:
    """Kill every process in that network namespace."""
    deadline = time.monotonic() + _END_S
    while (pids := _words("ip", "netns", "pids", space)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)


def _mute(link: str) -> None:
    """This machine itself is not to answer on that interface: without its bridge it is a cable's loose end."""
    Path(f"/proc/sys/net/ipv4/conf/{link}/arp_ignore").write_text("8")  # answers for no address
    ipv6 = Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6")
    if ipv6.exists():
        ipv6.write_text("1")


class Hosts:
    """`count` hosts, which see this machine's files and the same `folder`, and share nothing else.

    Args:
        alone: of `folder` each one sees only its own part (`own`), at the same path as from outside.
        disk_bytes: size of a file system that each one has for WORK; it outlives a power cut. None: a plain folder.
    """

    def __init__(self, folder: Path, count: int, *, alone: bool = False, disk_bytes: int | None = None) -> None:
        self.folder, self.count, self.alone, self.disk_bytes = folder, count, alone, disk_bytes
        self._wires: dict[int, subprocess.Popen[bytes]] = {}
        self._holders: dict[int, subprocess.Popen[bytes]] = {}
        self._inits: dict[int, int] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        self._lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Hosts:
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # names and addresses are the same every time: one set at a time
        try:
            self._unplug()  # what a killed run may have left
            self._bring_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _bring_up(self) -> None:
        _ip("link", "add", _BRIDGE, "address", _BRIDGE_MAC, "type", "bridge")
        _ip("addr", "add", f"{OUTSIDE}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        for host in range(1, self.count + 1):
            self._plug(host)
            self._make_disk(host)
            self._boot(host)

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as steps:  # from the last to the first, each of them whatever becomes of the others
            steps.callback(os.close, self._lock)
            steps.callback(self._unplug)
            for process in self._started:
                steps.callback(process.wait, _END_S)
            for host in self._holders:
                steps.callback(self.kill, host)
            for host in self._wires:
                steps.callback(self._take_wire_out, host)

    def _unplug(self) -> None:
        """Take away all that has our names. But no folder: another run may wait for us with its own."""
        spaces = [space for space in _words("ip", "netns", "list") if space.startswith("rexhost")]
        for space in spaces:
            _end_all(space)
        for mount in Path("/proc/self/mounts").read_text().splitlines():
            source, where, *_ = mount.split()
            if source == _DISK:
                subprocess.run(["umount", where], check=False, capture_output=True)
        for link in os.listdir("/sys/class/net"):
            # By name, now: with its namespace alone the kernel would take it away some time later.
            if link.startswith(("rexv", "rexw")) or link == _BRIDGE:
                subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)

    def cut(self, host: int) -> None:
        """Pull the cable: silence, no reset."""
        _ip("link", "set", f"rexv{host}", "nomaster")

    def heal(self, host: int) -> None:
        """Put the cable back, and a good one."""
        lasted = self._take_wire_out(host) if host in self._wires else True
        _ip("link", "set", f"rexv{host}", "master", _BRIDGE)
        assert lasted, f"the bad cable of host {host} was none at last: its program has ended"

    def slow(self, host: int, *, delay_s: float = 0.1, loss: float = 0.02, seed: int = 1) -> None:
        """Put a bad cable in: every frame is late by `delay_s`, either way, and that share of them is lost."""
        near, far = f"rexw{host}", f"rexx{host}"
        _ip("link", "add", near, "type", "veth", "peer", "name", far)
        for link in (near, far):
            _mute(link)
        _ip("link", "set", f"rexv{host}", "nomaster")
        _ip("link", "set", near, "master", _BRIDGE, "up")
        _ip("link", "set", far, "up")
        words = [sys.executable, str(_WIRE), f"rexv{host}", far, str(delay_s), str(loss), str(seed)]
        self._wires[host] = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *words], stdin=subprocess.DEVNULL)

    def _take_wire_out(self, host: int) -> bool:
        """Was it still carrying?"""
        wire = self._wires.pop(host)
        was_there = wire.poll() is None
        wire.kill()
        wire.wait()
        subprocess.run(["ip", "link", "del", f"rexw{host}"], check=False, capture_output=True)
        return was_there

    def kill(self, host: int) -> None:
        """End every process of the host at once. Its peers see resets, unless the cable was cut before."""
        init, holder = self._inits.pop(host, None), self._holders.pop(host)
        if holder.poll() is None:  # else its first process, for which it waits, has ended, too
            with suppress(ProcessLookupError):
                os.kill(holder.pid if init is None else init, signal.SIGKILL)  # each takes the other one along
        try:
            holder.wait(_END_S)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.wait()

    def is_up(self, host: int) -> bool:
        return host in self._holders

    def boot(self, host: int) -> None:
        """Start a killed host again: empty process table, new incarnation, the same files."""
        self._boot(host)

    def own(self, host: int) -> Path:
        """The host's own part of the folder, seen at this path from inside and from outside."""
        return self.folder / f"host-{host}"

    def work(self, host: int) -> Path:
        """The host's WORK, seen from outside."""
        return self.own(host) / "tmp" / Path(WORK).relative_to("/tmp")

    def _plug(self, host: int) -> None:
        space = f"rexhost{host}"
        _ip("netns", "add", space)
        _ip("link", "add", f"rexv{host}", "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", f"rexv{host}", "master", _BRIDGE, "up")
        _mute(f"rexv{host}")
        _ip("-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")

    def _make_disk(self, host: int) -> None:
        self.work(host).mkdir(parents=True)
        if self.disk_bytes is not None:
            size = f"size={self.disk_bytes}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, _DISK, str(self.work(host))], check=True)

    def _boot(self, host: int) -> None:
        own = self.own(host)
        for name in ("tmp", "home"):
            (own / name).mkdir(parents=True, exist_ok=True)
        ready = own / "booted"
        ready.unlink(missing_ok=True)
        script = (  # bash stays: the first process buries orphans
            f"set -e; hostname rexhost{host}; mount -t tmpfs -o size=2g tmpfs /dev/shm; {self._keep(own / 'tmp')}"
            f"mount --rbind '{own / 'tmp'}' /tmp; {self._hide(own)}touch '{ready}'; sleep infinity & wait"
        )
        space = ["ip", "netns", "exec", f"rexhost{host}"]
        spaces = ["unshare", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        said = own / "boot.log"
        with said.open("wb") as log:
            command = [*space, *spaces, "bash", "-c", script]
            holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._holders[host] = holder
        deadline = time.monotonic() + 120
        while not ready.exists():
            up = time.monotonic() < deadline and holder.poll() is None
            assert up, f"host {host} did not boot: {said.read_text(errors='replace')}"
            time.sleep(0.05)
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        self._inits[host] = int(children[0])

    def _hide(self, own: Path) -> str:
        """Commands that leave of the folder only the host's own part."""
        if not self.alone:
            return ""
        hide = f"mount --bind '{own}' /mnt; mount -t tmpfs tmpfs '{self.folder}'; mkdir '{own}'"
        return f"{hide}; mount --move /mnt '{own}'; "

    @staticmethod
    def _keep(tmp: Path) -> str:
        """Commands that keep this checkout and its interpreter visible where they lie below the /tmp that we hide."""
        needed = {Path(__file__).resolve().parents[2], Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
        commands = ""
        for path in sorted(path for path in needed if path.is_relative_to("/tmp")):
            inside = tmp / path.relative_to("/tmp")
            commands += f"mkdir -p '{inside}'; mount --bind '{path}' '{inside}'; "
        return commands

    def address(self, host: int) -> str:
        return f"10.77.0.{10 + host}"

    def command(self, host: int, command: Sequence[str], env: dict[str, str] | None = None) -> list[str]:
        """The command line that runs `command` on a host, in its own home."""
        spaces = ["nsenter", "-t", str(self._inits[host]), "--net", "--pid", "--mount", "--ipc", "--uts"]
        own = {"HOME": str(self.own(host) / "home"), **(env or {})}
        return [*spaces, "env", *(f"{name}={value}" for name, value in own.items()), *command]

    def run(self, host: int, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        env = options.pop("env", None)
        options = {"capture_output": True, "text": True, "check": False, **options}
        return subprocess.run(self.command(host, command, env), **options)  # noqa: PLW1510 - it is among the options

    def start(
        self, host: int, command: Sequence[str], log: Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start something that stays until the host ends."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(host, command, env), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._started.append(process)
        return process
