"""Compiled graphs that outlive the attempt: on this node in a folder, for other nodes with the job's objects.

Compiling takes seconds on CPU (docs/benchmarks.md) and minutes on Ascend (463 s, the card's own figure). MindSpore
numbers its cached graphs and writes them in place, so each process works on a copy of its own, and puts it back whole
when it has more. The key holds all that shapes a graph; a cached one is believed only if its digest is right.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import platform
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from cluster.storage import ObjectStore, open_store
from jobs.contract import ENV_COMPILE_CACHE, ENV_STORE
from jobs.errors import ObjectNotFound, RexError
from rexnet import kernels
from rexnet.recipe import Recipe
from rexnet.world import World

log = logging.getLogger(__name__)
PREFIX = "graphs/"
_ASIDE, _ASIDE_S = ".graphs-", 3600.0  # names of what is being written, and when such a file is surely nobody's
_UPLOAD_S = 20.0  # how long the end of an attempt waits for an upload
# Keys that the host alone reads. Any other one shapes the graph, also one that is added and not thought of here.
_HOST_KEYS = frozenset((
    "distribute", "val_while_train", "val_interval", "log_interval", "seed", "dataset", "data_dir", "train_split",
    "val_split", "num_parallel_workers", "shuffle", "num_samples", "scale", "ratio", "hflip", "vflip",
    "color_jitter", "interpolation", "auto_augment", "re_prob", "re_scale", "re_ratio", "re_value",
    "re_max_attempts", "mean", "std", "crop_pct", "cutmix_prob", "ckpt_path", "keep_checkpoint_max", "ckpt_save_dir",
    "ckpt_save_interval", "ckpt_save_policy", "epoch_size", "ema_decay", "scheduler", "lr", "min_lr",
    "warmup_epochs", "warmup_factor", "decay_epochs", "shift_pixels", "max_corrupt", "max_steps", "ckpt_every",
    "ckpt_keep_last", "ckpt_keep_every", "ckpt_keep_best", "ckpt_store", "expected_top1", "expected_seconds",
    "fresh_head",
))  # fmt: skip


def graph_key(recipe: Recipe, world: World, *, program: str) -> str:
    """24 hex digits of all that shapes this rank's graphs: program, configuration, versions, device, kernels."""
    package = Path(__file__).parent
    shaping = recipe.model_dump(mode="json", exclude=set(_HOST_KEYS))
    parts = recipe.accumulation(world.size) if program == "train" else 1
    device = "Ascend" if any(Path("/dev").glob("davinci[0-9]*")) else platform.machine()
    key = hashlib.sha256(f"{program} {shaping} {world.size} {parts} {device} {metadata.version('mindspore')}".encode())
    key.update(f"{kernels.digest()} {kernels.library()}".encode())  # a cached graph names the library by its path
    key.update(str(package).encode())  # MindSpore's own check of the program's files goes by their paths
    for path in sorted([*package.glob("*.py"), *(package / "kernels").glob("*.py")]):
        key.update(path.read_bytes())  # MindSpore finds a graph by the order in which they are compiled
    return key.hexdigest()[:24]


class GraphCache:
    """This rank's compiled graphs. Without REX_COMPILE_CACHE, and on msrun's scheduler, it does nothing.

    To be made before MindSpore is imported. No fault in here costs more than a compilation.
    """

    def __init__(self, environment: Mapping[str, str], recipe: Recipe, world: World, *, program: str) -> None:
        self._shared: Path | None = None
        self._upload: threading.Thread | None = None
        folder = environment.get(ENV_COMPILE_CACHE)
        if not folder or world.is_scheduler:
            return
        self._name = f"{graph_key(recipe, world, program=program)}-{world.rank}"
        self._store_uri = environment.get(ENV_STORE, "")
        self._shared = Path(folder) / self._name
        self._own = Path(tempfile.mkdtemp(prefix="graphs-", dir=Path.cwd()))  # a killed rank leaves it to its attempt
        self._restore()
        self._before = self._files()
        self.is_warm = bool(self._before)
        os.environ["MS_COMPILER_CACHE_ENABLE"] = "1"
        os.environ["MS_COMPILER_CACHE_PATH"] = str(self._own)

    def publish(self) -> None:
        """Put new graphs back, on this node at once and among the job's objects in the background."""
        if self._shared is None or self._files() == self._before:
            return
        if self._upload is not None and self._upload.is_alive():
            return  # a slow store: the next one has these as well
        self._before = self._files()
        body = pack(self._own)
        try:
            self._keep(body)
        except OSError as error:
            log.warning("action=graphs-not-kept cause=%s", error)
        if self._store_uri:
            self._upload = threading.Thread(target=self._send, args=(body,), name="graphs", daemon=True)
            self._upload.start()

    def close(self) -> None:
        if self._shared is not None:
            if self._upload is not None:
                self._upload.join(_UPLOAD_S)
            shutil.rmtree(self._own, ignore_errors=True)

    def _restore(self) -> None:
        """This node's graphs, else those among the job's objects; damaged or absent ones are compiled."""
        for where, read in (("node", self._shared.read_bytes if self._shared else None), ("store", self._fetch)):
            try:
                body = read() if read else None
                if body is not None:
                    unpack(body, self._own)
                    log.info("action=graphs-restored from=%s name=%s", where, self._name)
                    return
            except (FileNotFoundError, ObjectNotFound):
                continue
            except (RexError, OSError, ValueError, zipfile.BadZipFile) as error:
                shutil.rmtree(self._own, ignore_errors=True)
                self._own.mkdir()
                log.warning("action=graphs-not-restored from=%s cause=%s", where, error)

    def _fetch(self) -> bytes | None:
        return self._store().get(PREFIX + self._name) if self._store_uri else None

    def _keep(self, body: bytes) -> None:
        assert self._shared is not None
        self._shared.parent.mkdir(parents=True, exist_ok=True)
        for left in self._shared.parent.glob(f"{_ASIDE}*"):
            if left.stat().st_mtime < time.time() - _ASIDE_S:  # of a process that was killed before it could rename
                left.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(prefix=_ASIDE, dir=self._shared.parent, delete=False) as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self._shared)

    def _send(self, body: bytes) -> None:
        try:
            with tempfile.NamedTemporaryFile(prefix="graphs-", dir=Path.cwd()) as file:
                file.write(body)
                file.flush()
                self._store().put_file(PREFIX + self._name, Path(file.name))
        except (RexError, OSError) as error:
            log.warning("action=graphs-not-sent cause=%s", error)

    def _store(self) -> ObjectStore:
        return open_store(self._store_uri)

    def _files(self) -> set[tuple[str, int, int]]:
        """Name, size and time of change of each file."""
        files = [path for path in self._own.rglob("*") if path.is_file()]
        return {(str(path.relative_to(self._own)), path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def pack(folder: Path) -> bytes:
    """The folder's files as a compressed archive, after the hex sha256 of that archive and a line's end."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(folder))
    return hashlib.sha256(archive.getvalue()).hexdigest().encode() + b"\n" + archive.getvalue()


def unpack(body: bytes, folder: Path) -> None:
    """Undo `pack`, into an existing folder. ValueError if a bit is not as it was."""
    digest, _, archive = body.partition(b"\n")
    if hashlib.sha256(archive).hexdigest().encode() != digest:
        raise ValueError("the cached graphs are damaged: their sha256 is not the one they were stored with")
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        packed.extractall(folder)  # keeps within the folder, whatever names the archive has
