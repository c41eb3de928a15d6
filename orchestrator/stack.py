"""What runs on this machine: Ray, an MLflow server and the control plane, brought up when missing, one of each.

Every process of a state directory carries its token in the environment; that, not a process name, is how `down` finds
them. Bringing up is serialised by a lock file, so two commands at once bring up one stack.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from cluster.node.processes import (
    descendants,
    end_by_environment,
    end_family,
    find_by_environment,
    is_alive,
    started_at,
)
from jobs.errors import StackError
from orchestrator.settings import Home
from orchestrator.store import Store
from orchestrator.store.flags import PAUSED, READY

ENV_STACK = "REX_STACK"
_READY_S = 120.0
_FRESH_S = 5.0  # whoever completed a round so long ago is alive: an idle control plane has one every two seconds
_SOCKET_PATH_LIMIT = 107  # sun_path; Ray adds up to 66 characters to its folder
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray lowers its workers by 15 otherwise, and training would inherit that
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # two processes instead of nine
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "DO_NOT_TRACK": "1",
}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A process that we started: its id alone could be somebody else's by now, with its start time it cannot."""

    name: str
    pid: int
    started: int
    port: int


class Stack:
    """The local processes of one state directory."""

    def __init__(self, home: Home) -> None:
        self.home = home

    # -- what is there

    @property
    def token(self) -> str:
        """What marks every process of this stack. FileNotFoundError where none was ever brought up, or where somebody
        has removed the state directory: a second token there would hide the processes of the first.
        """
        return (self.home.run / "token").read_text()

    def service(self, name: str) -> Service | None:
        """The running service of that name, None if it does not run."""
        path = self.home.run / f"{name}.json"
        try:
            service = Service(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        alive = is_alive(service.pid) and started_at(service.pid) == service.started
        return service if alive else None

    @property
    def ray_address(self) -> str:
        return self.home.settings.ray_address or f"127.0.0.1:{self._port('ray')}"

    @property
    def mlflow_uri(self) -> str:
        return self.home.settings.mlflow_uri or f"http://127.0.0.1:{self._port('mlflow')}"

    @property
    def ray_auth(self) -> dict[str, str]:
        """Environment of a process that is to reach Ray. The embedded one asks for a token that lies in the state
        directory: its ports are open to everybody on this machine. About another one the user's own environment says
        how to reach it.
        """
        path = self.home.run / "ray-token"
        if (
            not self.home.embedded_ray or not path.exists()
        ):  # one that an earlier version of ours has started asks for none
            return {}
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(path)}

    def running(self) -> list[Service]:
        found = (self.service(name) for name in ("ray", "mlflow", "control"))
        return [service for service in found if service is not None]

    def is_recorded(self, pid: int) -> bool:
        """Is the control plane on record that process? Not if somebody removed the state directory under it.

        A record that cannot be read now says nothing.
        """
        try:
            return bool(json.loads((self.home.run / "control.json").read_text())["pid"] == pid)
        except FileNotFoundError:
            return False
        except OSError:
            return True

    # -- up

    def up(self, say: Progress = lambda line: None) -> Store:
        """Bring up what is missing and wait until it answers; returns the store. StackError with the log's end."""
        self.home.create()
        store = Store(self.home.database_url)
        with FileLock(self.home.run / "stack.lock"):
            _make_secret(self.home.run / "token", 12)
            store.migrate()
            if store.flag(PAUSED):
                store.set_flag(PAUSED, False)
            alive_since = time.time() - _FRESH_S
            self.ensure_services(say)
            if self.service("control") is None:
                alive_since = time.time()
                say("starting the control plane")
                end_by_environment(ENV_STACK + "_CONTROL", self.token)  # one that nobody has a record of
                command = ["-m", "orchestrator.daemon", "--home", str(self.home.path)]
                self._start("control", [sys.executable, *command], port=0)
            self.await_round(store, since=alive_since)
        return store

    def tend(self, say: Progress = lambda line: None) -> None:
        """For the control plane: start again what has died, unless somebody is bringing up or down right now.

        The caller has seen that the state directory is there: asking for the lock would make it anew.
        """
        try:
            with FileLock(self.home.run / "stack.lock", timeout=0):
                self.ensure_services(say)
        except Timeout:
            return
        except StackError as error:  # it is tried again; whoever needs the service waits
            say(str(error))

    def ensure_services(self, say: Progress = lambda line: None) -> None:
        """Ray and MLflow, each started if missing. The caller holds the stack's lock."""
        waiting: list[tuple[Service, Callable[[], bool]]] = []
        if self.home.embedded_ray and self.service("ray") is None:
            say("starting Ray")
            end_by_environment(ENV_STACK + "_RAY", self.token)  # what an earlier head may have left
            port = self._claim_port("ray")
            _make_secret(self.home.run / "ray-token", 32)
            ray = self._start("ray", self._ray_command(port), port=port)
            waiting.append((ray, lambda: _answers(ray.port)))
        if self.home.embedded_mlflow and self.service("mlflow") is None:
            say("starting the MLflow server")
            end_by_environment(ENV_STACK + "_MLFLOW", self.token)
            port = self._claim_port("mlflow")
            mlflow = self._start("mlflow", self._mlflow_command(port), port=port)
            waiting.append((mlflow, lambda: _answers(mlflow.port, "/health")))
        for service, ready in waiting:
            self._wait(service, ready)

    def _ray_command(self, port: int) -> list[str]:
        return [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",  # its children end with it
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            f"--num-cpus={self.home.slots}",
            "--include-dashboard=false",
            "--include-log-monitor=false",  # it follows every log of the session for drivers, which we ask for none
            "--disable-usage-stats",
            f"--temp-dir={self._ray_folder()}",
        ]

    def _ray_folder(self) -> Path:
        """Inside the state directory, unless Ray's socket paths would get too long there."""
        inside = self.home.path / "ray"
        if len(str(inside)) + 66 <= _SOCKET_PATH_LIMIT:
            return inside
        return _outside(self.token)

    def _mlflow_command(self, port: int) -> list[str]:
        folder = self.home.path / "mlflow"
        folder.mkdir(exist_ok=True)
        return [
            str(Path(sys.executable).with_name("mlflow")),
            "server",
            "--host=127.0.0.1",
            f"--port={port}",
            "--workers=1",
            f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}",
            f"--artifacts-destination={folder / 'artifacts'}",
        ]

    def _port(self, name: str) -> int:
        """The port of a service, 0 before it was first started."""
        path = self.home.run / "ports.json"
        ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        return ports.get(name, 0)

    def _claim_port(self, name: str) -> int:
        """The service's port, chosen once so that links stay valid over restarts; another one if somebody took it.

        The caller holds the stack's lock.
        """
        path = self.home.run / "ports.json"
        ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        if name not in ports or not _is_free(ports[name]):
            ports[name] = _free_port()
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(ports))
            os.replace(temporary, path)
        return ports[name]

    def _start(self, name: str, command: list[str], *, port: int) -> Service:
        """Start a service in a session of its own, its output in logs/NAME.log."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(ENV_STACK)}
        env = {**inherited, **_QUIET, **self.ray_auth, ENV_STACK: self.token, f"{ENV_STACK}_{name.upper()}": self.token}
        with (self.home.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=self.home.path,
                start_new_session=True,
            )
        service = Service(name=name, pid=process.pid, started=started_at(process.pid) or 0, port=port)
        temporary = self.home.run / f"{name}.tmp"
        temporary.write_text(json.dumps({"name": name, "pid": service.pid, "started": service.started, "port": port}))
        os.replace(temporary, self.home.run / f"{name}.json")
        return service

    def _wait(self, service: Service, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_S
        while not ready():
            if not is_alive(service.pid) or time.monotonic() > deadline:
                ended = "ended" if not is_alive(service.pid) else f"did not answer within {_READY_S:.0f} s"
                raise StackError(
                    f"{service.name} {ended}: {self._last_line(service.name)}",
                    hint=f"its log is {self.home.logs / f'{service.name}.log'}",
                )
            time.sleep(0.1)

    def await_round(self, store: Store, *, since: float) -> None:
        """Wait until the control plane has completed a round since then (Unix time); StackError if it does not."""
        control = self.service("control")
        if control is None:
            raise StackError(f"the control plane ended at once: {self._last_line('control')}")
        self._wait(control, lambda: float(store.flag(READY) or 0) >= since)

    def _last_line(self, name: str) -> str:
        path = self.home.logs / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return lines[-1] if lines else "it wrote nothing"

    # -- down

    def down(self, say: Progress = lambda line: None) -> None:
        """End every process of this state directory: the control plane first, so that nothing is restarted."""
        if not (self.home.run / "token").exists():  # nothing was ever brought up here
            return
        with FileLock(self.home.run / "stack.lock"):
            for name in ("control", "ray", "mlflow"):
                key = f"{ENV_STACK}_{name.upper()}"
                if find_by_environment(key, self.token):
                    say(f"stopping {'the control plane' if name == 'control' else name}")
                # Ray's Python processes write their title over their environment, so their family counts as well.
                service = self.service(name)
                family = descendants(service.pid) if service else {}
                left = end_by_environment(key, self.token, grace_s=10.0, timeout_s=40.0) + end_family(family)
                if left:
                    raise StackError(f"processes {left} of {name} do not end", hint="look at them with ps")
                (self.home.run / f"{name}.json").unlink(missing_ok=True)
            if left := end_by_environment(ENV_STACK, self.token):
                raise StackError(f"processes {left} do not end", hint="look at them with ps")
            _remove_outside(self.token)


def end_orphans(token: str, services: list[Service]) -> None:
    """End and remove what a stack whose state directory is gone has left: nobody else can find it. Not this process."""
    family: dict[int, int] = {}
    for service in services:
        if service.pid != os.getpid() and started_at(service.pid) == service.started:
            family |= descendants(service.pid)
    end_by_environment(ENV_STACK, token, grace_s=10.0, timeout_s=40.0)
    end_family(family)
    _remove_outside(token)


def _make_secret(path: Path, size: int) -> None:
    """Once for a state directory, so that whoever knows it finds the stack again. The caller holds the stack's lock."""
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.touch(0o600)
        temporary.write_text(secrets.token_hex(size))
        os.replace(temporary, path)


def _outside(token: str) -> Path:
    """Ray's folder where the state directory's path is too long for it."""
    return Path("/tmp") / f"rexctl-ray-{token[:12]}"


def _remove_outside(token: str) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(_outside(token))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _answers(port: int, path: str | None = None) -> bool:
    """Does a TCP port answer (and, with `path`, an HTTP GET with 200)?"""
    import http.client

    try:
        if path is None:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            return True
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        finally:
            connection.close()
    except OSError:
        return False
