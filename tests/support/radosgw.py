"""A real S3 server for tests: one Ceph monitor, one in-memory OSD, one RADOS gateway, on loopback.

The daemons run in the foreground as our own children, with a folder and free ports of their own; they die with us
(PDEATHSIG) and are ended one by one, by the process objects that we hold.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

APT_LINE = "apt-get install -y --no-install-recommends ceph-mon ceph-osd radosgw"
ACCESS_KEY, SECRET_KEY = "AKTEST", "SKTEST12345"
_BINARIES = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin", "setpriv")
_START_TIMEOUT_S = 120.0
_CONFIG = """[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 1
osd objectstore = memstore
memstore device bytes = {memory}
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/log/$name.log
pid file = {folder}/$name.pid
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
rgw thread pool size = 64
rgw enable apis = s3, admin
rgw gc obj min wait = 1
rgw gc processor period = 2
rgw gc processor max time = 2
"""  # without the gc lines, replaced objects stay for two hours; memory that is full blocks writers without a word


def missing_for_radosgw() -> str:
    """Why a gateway cannot be started on this machine; "" if it can."""
    missing = [name for name in _BINARIES if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: as root, {APT_LINE}"
    return ""


class RadosGateway:
    """`start()`, use `endpoint`, `stop()`. The gateway alone can be stopped and started again: an outage.

    It answers at `address`, everything behind it on loopback. Objects lie in memory, replaced ones for some seconds
    more; when `memory` bytes are full, writers wait for ever.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1", *, memory: int = 2 << 30) -> None:
        self._folder, self._address, self._memory = folder, address, memory
        self._port, self._mon_v2, self._mon_v1 = _free_ports(3)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def endpoint(self) -> str:
        return f"http://{self._address}:{self._port}"

    def start(self) -> None:
        """Bring the cluster up; RuntimeError with the end of the logs if it does not come."""
        try:
            self._start_cluster()
            self.start_gateway()
            self._run(
                *("radosgw-admin", "-c", self._conf, "user", "create", "--uid=test", "--display-name=test"),
                *(f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"),
            )
        except BaseException:
            self.stop()
            raise

    def start_gateway(self) -> None:
        # Without tcp_nodelay each answer in two pieces waits 40 ms for a delayed acknowledgement.
        frontend = f"--rgw-frontends=beast endpoint={self._address}:{self._port} tcp_nodelay=1"
        self._spawn("gateway", "radosgw", "-n", "client.rgw", frontend)
        self._wait("gateway", self._answers)

    def pause_gateway(self) -> None:
        """An outage of the other kind: connections are taken, nothing answers."""
        self._daemons["gateway"].send_signal(signal.SIGSTOP)

    def go_on_with_gateway(self) -> None:
        self._daemons["gateway"].send_signal(signal.SIGCONT)

    def stop_gateway(self) -> None:
        self._end("gateway")

    def stop(self) -> None:
        """End all daemons; what they held was in memory and in the folder."""
        for name in reversed(list(self._daemons)):
            self._end(name)

    @property
    def _conf(self) -> str:
        return str(self._folder / "ceph.conf")

    def _start_cluster(self) -> None:
        for name in ("mon", "osd", "log"):
            (self._folder / name).mkdir(parents=True)
        fsid, keyring, monmap = str(uuid.uuid4()), str(self._folder / "keyring"), str(self._folder / "monmap")
        Path(self._conf).write_text(
            _CONFIG.format(
                fsid=fsid, folder=self._folder, mon_v1=self._mon_v1, mon_v2=self._mon_v2, memory=self._memory
            )
        )
        self._run(*("ceph-authtool", keyring, "--create-keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"))
        self._run(
            *("ceph-authtool", keyring, "--gen-key", "-n", "client.admin"),
            *("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"),
        )
        address = f"[v2:127.0.0.1:{self._mon_v2},v1:127.0.0.1:{self._mon_v1}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "-c", self._conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("mon", "ceph-mon", "-i", "a")
        osd_uuid = str(uuid.uuid4())
        osd = self._ceph("osd", "new", osd_uuid).strip()
        self._authorise(keyring, f"osd.{osd}", mon="allow profile osd", osd="allow *", mgr="allow profile osd")
        self._run("ceph-osd", "-c", self._conf, "-i", osd, "--mkfs", "--osd-uuid", osd_uuid, "--no-mon-config")
        self._ceph("osd", "crush", "add", f"osd.{osd}", "1.0", "root=default", "host=localhost")
        self._spawn("osd", "ceph-osd", "-i", osd)
        self._wait("osd", lambda: json.loads(self._ceph("osd", "stat", "--format=json"))["num_up_osds"] == 1)
        self._authorise(keyring, "client.rgw", mon="allow rw", osd="allow rwx", mgr="allow rw")

    def _authorise(self, keyring: str, entity: str, **capabilities: str) -> None:
        words = [word for pair in capabilities.items() for word in pair]
        with Path(keyring).open("a") as file:
            file.write(self._ceph("auth", "get-or-create", entity, *words))

    def _ceph(self, *words: str) -> str:
        return self._run("ceph", "-c", self._conf, "--connect-timeout", "60", *words)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_START_TIMEOUT_S, cwd=self._folder, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}{self._logs()}")
        return done.stdout

    def _spawn(self, name: str, binary: str, *words: str) -> None:
        with (self._folder / "log" / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", binary, "-f", "-c", self._conf, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                start_new_session=True,  # a Ctrl-C is for the tests; they stop us in order
            )

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not ready():
            if self._daemons[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"radosgw for tests: {name} did not come up{self._logs()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.endpoint, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _end(self, name: str) -> None:
        process = self._daemons.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:  # an OSD that cannot reach its monitor takes its time; it holds nothing
            process.kill()
            process.wait()

    def _logs(self) -> str:
        outputs = sorted((self._folder / "log").glob("*.out"))
        return "".join(f"\n{path.name}: {path.read_text(errors='replace')[-800:]}" for path in outputs)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(held.getsockname()[1]) for held in sockets]
    for held in sockets:
        held.close()
    return ports
