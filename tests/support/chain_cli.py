"""`rexctl checkpoints` in this process, on a real chain in a directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectStore, open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.records import sealed_manifest
from jobs.manifest import Manifest
from jobs.spec import build_spec
from jobs.states import GangGranted
from orchestrator.cli import main as command_line
from orchestrator.store import Store
from tests.support.chains import committed, make_commit

JOB = "count-1a2b"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Rexctl = Callable[..., Done]


@pytest.fixture
def rexctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rexctl:
    """`rexctl checkpoints ...` in this process, with a state directory of its own."""
    monkeypatch.setenv("REX_HOME", str(tmp_path / "home"))

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["rexctl", "checkpoints", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        printed = capsys.readouterr()
        code = ended.value.code
        assert "Traceback" not in printed.err and "a bug" not in printed.err
        return Done(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run


@dataclass(frozen=True)
class Chain:
    """Attempt 1 saved steps 10 to 40; the newest of them was damaged, so attempt 2 went on from 30, to 50 and 60."""

    root: Path
    scratch: Path
    store: ObjectStore
    writer: CheckpointStore
    made: dict[str, Manifest]

    @property
    def uri(self) -> str:
        return self.store.uri

    def damage(self, manifest: Manifest, name: str = "state") -> None:
        flip(self.root / manifest.file(name).key)


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    root, scratch = tmp_path / "store", tmp_path / "scratch"
    scratch.mkdir()
    store = open_store(f"file://{root}")
    (scratch / "frozen").write_bytes(b"frozen" * 100)
    first = CheckpointStore(store, JOB)
    first.start_attempt(1)
    parent: Manifest | None = None
    made: dict[str, Manifest] = {}
    for step in (10, 20, 30, 40):
        parent = make_commit(
            first, scratch, 1, step, parent, {"frozen": scratch / "frozen"}, metrics={"top1": 1 - step / 100}
        )
        made[f"1-{step}"] = parent
    flip(root / made["1-40"].file("state").key)
    second = CheckpointStore(store, JOB)
    start = second.start_attempt(2).manifest
    assert start is not None and start.step == 30
    for one in committed(second, scratch, 2, [50, 60], start):
        made[f"2-{one.step}"] = one
    return Chain(root, scratch, store, second, made)


def submit(home: Path, store_uri: str, *, running: bool = False) -> None:
    """The job of the chain as a row of the job store."""
    home.mkdir(exist_ok=True)
    store = Store(f"sqlite:///{home / 'store.db'}")
    store.migrate()
    spec = build_spec({"name": "count", "program": {"module": "m"}})
    store.submit(JOB, spec, store_uri=store_uri, init_from=None, now=1.0)
    if running:
        nodes = [{"id": "n", "host": "h", "address": "127.0.0.1"}]
        store.apply(store.get(JOB), GangGranted(), now=2.0, action="gang_granted", nodes=nodes)
    store.engine.dispose()


def states(done: Done) -> dict[str, str]:
    return {f"{row['attempt']}-{row['step']}": row["state"] for row in done.json}


def rewritten(chain: Chain, manifest: Manifest, **changes: Any) -> Manifest:
    """The manifest as somebody else could have committed it."""
    changed = manifest.model_copy(update=changes)
    (chain.root / manifest.name).write_bytes(sealed_manifest(changed))
    return changed
