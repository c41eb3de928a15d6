"""Copies of a checkpoint outside its store: all of its files in a folder, or its weights alone as one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.storage.chain.records import sealed_manifest
from cluster.storage.digests import digest_file
from jobs.contract import Exit
from jobs.errors import CorruptCheckpoint, SpecError, StackError
from jobs.files import STATE
from jobs.manifest import FileEntry, Manifest
from orchestrator.checkpoints.chains import Chain
from orchestrator.checkpoints.folders import growing, made_folder, new_folder

MANIFEST = "manifest.json"
_PROGRAM = "rexnet.publish"

OnBytes = Callable[[int], None]  # told how many bytes have come, from 0 to the total


def pull(chain: Chain, manifest: Manifest, target: Path, on_bytes: OnBytes) -> None:
    """The checkpoint's files and its sealed manifest as the folder `target`: whole and verified, or not at all.

    Raises:
        ConflictError: `target` is there and is no empty folder.
        CorruptCheckpoint: a file is missing or altered.
        StoreUnavailable: not knowing, or the disk is full.
    """
    paths = [_path(entry, manifest.name) for entry in manifest.files]
    with new_folder(target) as folder:
        done = 0
        for entry, path in zip(manifest.files, paths, strict=True):
            into = folder / path
            into.parent.mkdir(parents=True, exist_ok=True)
            with growing(into, partial(_add, on_bytes, done)):
                chain.checkpoints.fetch(manifest, entry.name, into)
            done += entry.size_bytes
            on_bytes(done)
        (folder / MANIFEST).write_bytes(sealed_manifest(manifest))


def export(
    chain: Chain, manifest: Manifest, folder: Path, *, kind: str, ema: bool, on_bytes: OnBytes
) -> dict[str, Any]:
    """The weights as `<model>-<first 8 hex of its sha256>.<kind>` in `folder`; what `python -m rexnet.publish` prints.

    Raises:
        SpecError: the checkpoint holds no ReXNet, or no averages and `ema` was asked for.
        UserError: the folder cannot be made.
        CorruptCheckpoint: its state is missing or altered; or the file that was written is not what was meant.
        StackError: the program that writes it has failed.
    """
    entry = state_of(manifest)
    with made_folder(folder), tempfile.TemporaryDirectory(prefix="rex-export-") as scratch:
        state = Path(scratch) / entry.name
        with growing(state, on_bytes):
            chain.checkpoints.fetch(manifest, entry.name, state)
        on_bytes(entry.size_bytes)
        values = _publish(state, folder.absolute(), kind=kind, ema=ema)
    written = digest_file(Path(values["path"]))
    if (written.sha256, written.size_bytes) != (values["sha256"], values["size_bytes"]):
        raise CorruptCheckpoint(
            f"{values['path']} has sha256 {written.sha256[:12]} instead of {values['sha256'][:12]}",
            hint="do not use it: check the disk and export again",
        )
    return values


def state_of(manifest: Manifest) -> FileEntry:
    """The file with the weights in it; SpecError if it is no checkpoint of rexnet's."""
    for entry in manifest.files:
        if entry.name == STATE:
            return entry
    raise SpecError(
        f"{manifest.name} holds no {STATE}, so its weights are not known to us",
        hint="rexnet.train makes such checkpoints; `rexctl checkpoints pull` copies any",
    )


def _add(on_bytes: OnBytes, before: int, now: int) -> None:
    on_bytes(before + now)


def _publish(state: Path, folder: Path, *, kind: str, ema: bool) -> dict[str, Any]:
    """Run the program in a process of its own, for it imports MindSpore; SpecError with its sentence if it refuses."""
    found = find_spec(_PROGRAM)
    if found is None or found.origin is None:
        raise StackError(f"{_PROGRAM} is not installed", hint="install rexnet-orchestrator as a whole")
    command = [sys.executable, found.origin, "--ckpt_path", str(state), "--format", kind, "--out", str(folder)]
    done = subprocess.run(
        [*command, "--json", *(["--ema"] if ema else [])], cwd=state.parent, capture_output=True, text=True,
        check=False, env={**os.environ, "GLOG_v": "3"},
    )  # fmt: skip
    if done.returncode != Exit.DONE:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        sentence = said[-1].removeprefix(f"{_PROGRAM}: ").replace(f"{state}", state.name)
        if done.returncode == Exit.CONFIG:
            raise SpecError(sentence)
        raise StackError(f"{_PROGRAM} has ended with {done.returncode}: {sentence}")
    values: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return values


def _path(entry: FileEntry, manifest: str) -> PurePosixPath:
    """The file's name as a path that stays in the folder and leaves our manifest alone; SpecError otherwise."""
    path = PurePosixPath(entry.name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\0" in entry.name
        or path in (PurePosixPath(), PurePosixPath(MANIFEST))
    ):
        raise SpecError(f"{manifest} lists a file {entry.name!r}, which cannot be put into a folder")
    return path
