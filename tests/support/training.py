"""Runs the training program under a real msrun, listens to its heartbeats, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.node.processes import end_by_environment

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "rexnet" / "train.py"
# Small enough for seconds of training: 16 px, 16 samples a rank, 12 steps, a checkpoint every 3.
SMALL = ("--config=quickstart", "--image_resize=16", "--batch_size=16", "--global_batch=32", "--max_steps=12",
         "--ckpt_every=3 steps")  # fmt: skip
# Everything that has state or draws random numbers.
RICH = (*SMALL, "--drop_rate=0.2", "--drop_path_rate=0.2", "--mixup=0.2", "--ema=true", "--clip_grad=true",
        "--loss_scale_type=dynamic", "--loss_scale=1024", "--re_prob=0.3", "--hflip=0.5")  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Training:
    """One start of two workers in `folder`; to be used as a context, whose end kills what is left, by pid."""

    def __init__(
        self, folder: Path, *arguments: str, graphs: Path | None = None, script: Path = TRAIN, **environment: str
    ) -> None:
        self.folder, self.reports = folder, folder / f"reports-{uuid.uuid4().hex[:6]}"
        self.reports.mkdir(parents=True)
        self.token = uuid.uuid4().hex
        self.heartbeats: dict[int, dict[str, Any]] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0rexnet-test-{self.token}")
        self._socket.settimeout(1.0)
        binaries = Path(sys.executable).parent
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("REX_", "MS_", "MLFLOW_"))},
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "REX_TOKEN": self.token,
            "REX_SOCKET": f"rexnet-test-{self.token}",
            "REX_REPORT_DIR": str(self.reports),
            **({"REX_COMPILE_CACHE": str(graphs)} if graphs else {}),
            **environment,
        }
        self.log_dir = folder / f"logs-{self.token[:6]}"
        command = [str(binaries / "msrun"), "--worker_num=2", "--local_worker_num=2", "--join=True",
                   f"--master_port={free_port()}", f"--log_dir={self.log_dir}", "--tail_worker_log=9",
                   str(script), *arguments]  # fmt: skip
        self.output = (folder / f"msrun-{self.token[:6]}.txt").open("wb")
        self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=self.output, stderr=subprocess.STDOUT)

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        left = end_by_environment("REX_TOKEN", self.token)
        self._socket.close()
        self.output.close()
        assert not left, f"still alive: {left}"

    def wait_for(self, reached: Callable[[dict[int, dict[str, Any]]], bool], timeout_s: float = 240) -> None:
        """Read heartbeats until `reached` holds of the newest of each rank."""
        deadline = time.monotonic() + timeout_s
        while not reached(self.heartbeats):
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None or self._receive(), f"ended too early\n{self.said()}"
            self._receive()

    def terminate_workers(self) -> None:
        """SIGTERM to each rank; msrun would orphan them instead of passing it on."""
        for beat in self.heartbeats.values():
            os.kill(beat["pid"], signal.SIGTERM)

    def kill_worker(self, rank: int) -> None:
        """SIGKILL to one rank, as the kernel does when memory is short."""
        os.kill(self.heartbeats[rank]["pid"], signal.SIGKILL)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def finish(self, timeout_s: float = 240) -> int:
        """Wait for msrun's end; returns its exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.said()
            self._receive()
        while self._receive():
            pass
        return self.process.returncode

    def wait_until(self, reached: Callable[[], bool], timeout_s: float = 240) -> None:
        """Wait for something that heartbeats do not tell."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < deadline, self.said()
            self._receive()

    def printed(self) -> str:
        """What msrun itself wrote."""
        return Path(self.output.name).read_text(errors="replace")

    def report(self, rank: int) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.reports / f"rank_{rank}.json").read_text())
        return values

    def said(self) -> str:
        """What the workers wrote, for a failed assertion."""
        lines: list[str] = []
        for path in sorted(self.log_dir.glob("*.log")):
            text = path.read_text(errors="replace").splitlines()
            lines += [
                f"== {path.name}",
                *[line for line in text if "[WARNING]" not in line and "[INFO]" not in line][-30:],
            ]
        return "\n".join(lines)

    def _receive(self) -> bool:
        try:
            message = json.loads(self._socket.recv(65536))
        except TimeoutError:
            return False
        self.heartbeats[message["rank"]] = message
        return True
