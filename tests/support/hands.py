"""Hands outside: what a host cannot do to its own cable or power switch, done by the test on the machine around it.

A process on the first host asks (`python hands.py ask FOLDER WHAT HOST`) by a file in that host's own folder, which the
machine around it sees, and waits; `Hands` serves it in a thread.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.ray_hosts import Cluster

_WAIT_S = 150.0  # a Ray node may take 90 s to join


class Hands:
    """Pulls cables, switches hosts off and on, stops servers, until left."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.folder = cluster, cluster.folder / "asked"
        self.folder.mkdir(exist_ok=True)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="hands")
        self.done: list[str] = []

    def commands(self) -> dict[str, list[str]]:
        """The chaos plan's commands."""
        ask = [sys.executable, __file__, "ask", str(self.folder)]
        hosts = ("cut", "slow", "heal", "power_off", "power_on", "start_ray_node")
        servers = ("stop_store", "start_store", "stop_mlflow", "start_mlflow")
        return {name: [*ask, name, "{host}"] for name in hosts} | {name: [*ask, name, "-"] for name in servers}

    def __enter__(self) -> Hands:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._over.wait(0.05):
            for asked in sorted(self.folder.glob("*.asked")):
                try:
                    self._do(*asked.stem.split("@"))
                except Exception as error:  # for whoever asked to judge; the next one is to be served all the same
                    asked.write_text(" ".join(f"{type(error).__name__}: {error}".split()))
                    asked.rename(asked.with_suffix(".failed"))
                else:
                    self.done.append(asked.stem)
                    asked.rename(asked.with_suffix(".done"))

    def _do(self, what: str, host: str) -> None:
        if host == "-":
            self._do_to_a_server(*what.split("_"))
        else:
            self._do_to_a_host(what, int(host.removeprefix("rexhost")))

    def _do_to_a_server(self, what: str, name: str) -> None:
        assert self.cluster.outside is not None
        {"stop": self.cluster.outside.stop, "start": self.cluster.outside.start}[what](name)

    def _do_to_a_host(self, what: str, host: int) -> None:
        hosts = self.cluster.hosts
        if what == "cut":
            hosts.cut(host)
        elif what == "slow":
            hosts.slow(host)
        elif what == "heal":
            self.cluster.heal(host)
        elif what == "power_off":
            hosts.cut(host)  # peers see no reset, as when the power goes
            hosts.kill(host)
        elif what == "power_on":
            hosts.heal(host)
            hosts.boot(host)
            self.cluster.join(host)
        elif what == "start_ray_node":
            self.cluster.join(host)


def ask(folder: Path, what: str, host: str) -> int:
    done, failed = folder / f"{what}@{host}.done", folder / f"{what}@{host}.failed"
    done.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    (folder / f"{what}@{host}.asked").touch()
    deadline = time.monotonic() + _WAIT_S
    while not done.exists():
        if failed.exists():
            print(f"{what} of {host} failed: {failed.read_text()}", file=sys.stderr)
            return 1
        if time.monotonic() > deadline:
            print(f"nobody did {what} to {host}", file=sys.stderr)
            return 1
        time.sleep(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(ask(Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
