"""Wall clocks that jump: libfaketime in front of the processes of a host, and a file that says by how much it is off.

The monotonic clocks stay as they are. libfaketime 0.9.10 takes the end of a sleep by the monotonic clock, as Python
3.11 sleeps, for a time of day, so clock_nanosleep is led past it by a library of three lines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.hosts import Hosts

APT_LINE = "apt-get install -y --no-install-recommends libfaketime g++"
_FOLDER = "/tmp/clock"  # every host's own
_SLEEP = """
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
extern "C" int clock_nanosleep(clockid_t clock, int flags, const timespec* until, timespec* left) {
  return syscall(SYS_clock_nanosleep, clock, flags, until, left) == 0 ? 0 : errno;
}
"""


def _library() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def missing_for_clocks() -> str:
    """Why no clock can jump on this machine; "" if it can."""
    lacking = [name for name, there in (("libfaketime", _library()), ("g++", shutil.which("g++"))) if not there]
    return f"needs {', '.join(lacking)}: as root, {APT_LINE}" if lacking else ""


class Clocks:
    """A wall clock for each host; right until it is told to `jump`. It moves processes that were started with `env`."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        for host in range(1, hosts.count + 1):
            self._inside(host).mkdir()
            self.jump(host, 0)
        sleep = self._inside(1) / "sleep.so"
        build = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(sleep)]
        subprocess.run(build, input=_SLEEP.encode(), check=True)
        for host in range(2, hosts.count + 1):
            shutil.copy(sleep, self._inside(host))

    def _inside(self, host: int) -> Path:
        return self.hosts.own(host) / "tmp" / Path(_FOLDER).name

    @property
    def env(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": f"{_FOLDER}/sleep.so:{_library()}",
            "FAKETIME_TIMESTAMP_FILE": f"{_FOLDER}/offset",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else waits by the monotonic clock end at once, and Ray's with them
            "FAKETIME_CACHE_DURATION": "1",  # seconds until a jump is seen
        }

    def jump(self, host: int, to_s: float) -> None:
        """From now on that host is `to_s` seconds ahead of the others (behind them, if negative)."""
        offset = self._inside(host) / "offset"
        temporary = offset.with_suffix(".tmp")
        temporary.write_text(f"{to_s:+.0f}\n")
        os.replace(temporary, offset)
