"""Several hosts on one machine, each with its own network address, process table, /tmp, home and shared memory.

Host I (from 1) answers at 10.77.0.(10+I), this machine at 10.77.0.1. Needs root and iproute2.
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
from pathlib import Path
from typing import Any

_BRIDGE = "rexbr0"
_LOCK = Path(tempfile.gettempdir()) / "rexhosts.lock"


def missing() -> str | None:
    """What keeps this machine from having hosts, None if nothing does."""
    if os.getuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs iproute2"
    probe = subprocess.run(["ip", "netns", "add", "rexprobe"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "rexprobe"], capture_output=True, check=False)
    return None if probe.returncode == 0 else f"needs network namespaces ({probe.stderr.strip()})"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Hosts:
    """`count` hosts whose files below `folder` are shared, and nothing else."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._holders: dict[int, subprocess.Popen[bytes]] = {}
        self._inits: dict[int, int] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        self._lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Hosts:
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # names and addresses are the same every time: one set at a time
        self._unplug()  # what a killed run may have left
        try:
            self._bring_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _bring_up(self) -> None:
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", "10.77.0.1/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        for host in range(1, self.count + 1):
            self._plug(host)
            self._boot(host)

    def __exit__(self, *exception: object) -> None:
        for host in tuple(self._holders):
            self.kill(host)  # its first process: the kernel ends all the others
        for process in self._started:
            process.wait()
        self._unplug()
        os.close(self._lock)

    def _unplug(self) -> None:
        for host in range(1, self.count + 1):
            # By name, now: with its namespace alone the kernel would take it away some time later.
            subprocess.run(["ip", "link", "del", f"rexv{host}"], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", f"rexhost{host}"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", _BRIDGE], check=False, capture_output=True)

    def cut(self, host: int) -> None:
        """Pull the cable: silence, no reset."""
        _ip("link", "set", f"rexv{host}", "nomaster")

    def heal(self, host: int) -> None:
        """Put the cable back."""
        _ip("link", "set", f"rexv{host}", "master", _BRIDGE)

    def kill(self, host: int) -> None:
        """End every process of the host at once. Its peers see resets, unless the cable was cut before."""
        os.kill(self._inits.pop(host), signal.SIGKILL)
        self._holders.pop(host).wait()

    def is_up(self, host: int) -> bool:
        return host in self._holders

    def boot(self, host: int) -> None:
        """Start a killed host again: empty process table, new incarnation, the same files."""
        self._boot(host)

    def _plug(self, host: int) -> None:
        space = f"rexhost{host}"
        _ip("netns", "add", space)
        _ip("link", "add", f"rexv{host}", "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", f"rexv{host}", "master", _BRIDGE, "up")
        _ip("-n", space, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")

    def _boot(self, host: int) -> None:
        own = self.folder / f"host-{host}"
        for name in ("tmp", "home"):
            (own / name).mkdir(parents=True, exist_ok=True)
        ready = own / "booted"
        ready.unlink(missing_ok=True)
        script = (  # bash stays: the first process buries orphans
            f"set -e; hostname rexhost{host}; mount -t tmpfs -o size=2g tmpfs /dev/shm; {self._keep(own / 'tmp')}"
            f"mount --rbind '{own / 'tmp'}' /tmp; touch '{ready}'; sleep infinity & wait"
        )
        space = ["ip", "netns", "exec", f"rexhost{host}"]
        spaces = ["unshare", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        holder = subprocess.Popen([*space, *spaces, "bash", "-c", script], stdin=subprocess.DEVNULL)
        self._holders[host] = holder
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert time.monotonic() < deadline and holder.poll() is None, f"host {host} did not boot"
            time.sleep(0.05)
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        self._inits[host] = int(children[0])

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
        own = {"HOME": str(self.folder / f"host-{host}" / "home"), **(env or {})}
        return [*spaces, "env", *(f"{name}={value}" for name, value in own.items()), *command]

    def run(self, host: int, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        env = options.pop("env", None)
        return subprocess.run(self.command(host, command, env), capture_output=True, text=True, check=False, **options)

    def start(self, host: int, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        """Start something that stays until the host ends."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(host, command, env), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._started.append(process)

    def processes(self, host: int) -> list[str]:
        """The command line of every process of the host."""
        return self.run(host, ["ps", "-e", "-o", "args="]).stdout.splitlines()
