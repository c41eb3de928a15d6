"""`rexctl checkpoints` as a user types it, on a directory and on a real S3 server; and while that does not answer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectStore
from cluster.storage.chain.checkpoints import CheckpointStore
from jobs.files import STATE
from jobs.manifest import Manifest
from jobs.spec import build_spec
from orchestrator.store import Store
from tests.conformance.backends import Backend
from tests.support.chains import make_commit
from tests.support.proxies import BreakingLine

REPOSITORY = Path(__file__).resolve().parents[2]
JOB = "digits-1a2b"
VERBS = [["ls"], ["show"], ["verify"], ["pull", "-o", "copy"], ["export", "-o", "weights"], ["gc", "--keep-last", "1"]]
WEIGHTS = """
import sys
from safetensors.numpy import save_file
from rexnet.model import create_model

cells = create_model("rexnet_09", num_classes=10, image_size=32, seed=1).get_parameters()
save_file({one.name: one.asnumpy().copy() for one in cells}, sys.argv[1])
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's state: the weights of a ReXNet 0.9."""
    path = tmp_path_factory.mktemp("weights") / STATE
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOG_v": "3"}
    subprocess.run([sys.executable, "-c", WEIGHTS, str(path)], env=environment, timeout=300, check=True)
    return path


@dataclass(frozen=True)
class Rexctl:
    """The command, in a folder and with a state directory of its own."""

    folder: Path

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", "checkpoints", *words]
        environment = {**os.environ, "REX_HOME": str(self.folder / "home"), "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    def json(self, *words: str, code: int = 0) -> Any:
        done = self(*words, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def made(self) -> set[str]:
        """What the commands have left in their folder."""
        return {path.name for path in self.folder.iterdir()} - {"home"}


@pytest.fixture
def rexctl(tmp_path: Path) -> Rexctl:
    folder = tmp_path / "typed"
    (folder / "home").mkdir(parents=True)
    return Rexctl(folder)


@dataclass(frozen=True)
class Chain:
    store: ObjectStore
    made: dict[int, Manifest]


@pytest.fixture
def chain(backend: Backend, weights: Path, tmp_path: Path, rexctl: Rexctl) -> Iterator[Chain]:
    """Attempt 1 saved steps 10 and 20, attempt 2 went on from there to 30; the job's row knows of that one."""
    store = backend.open()
    made: dict[int, Manifest] = {}
    parent: Manifest | None = None
    for attempt, step in ((1, 10), (1, 20), (2, 30)):
        writer = CheckpointStore(store, JOB)
        if step != 20:
            parent = writer.start_attempt(attempt).manifest
        parent = made[step] = make_commit(writer, tmp_path, attempt, step, parent, {STATE: weights})
    jobs = Store(f"sqlite:///{rexctl.folder / 'home' / 'store.db'}")
    jobs.migrate()
    spec = build_spec({"name": "digits", "program": {"module": "m"}})
    jobs.submit(JOB, spec, store_uri=backend.uri, init_from=None, now=1.0)
    jobs.note(JOB, checkpoint={"manifest": made[30].name, "step": 30, "sha256": made[30].sha256()})
    jobs.engine.dispose()
    yield Chain(store, made)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def altered(chain: Chain, manifest: Manifest, folder: Path) -> None:
    """A bit of its state is flipped in the store."""
    key = manifest.file("state").key
    body = bytearray(chain.store.get(key))
    body[7] ^= 1
    (folder / "altered").write_bytes(body)
    chain.store.put_file(key, folder / "altered")


@pytest.mark.parametrize("backend", ["directory", "radosgw"], indirect=True)
def test_every_verb_does_its_work(backend: Backend, chain: Chain, rexctl: Rexctl, tmp_path: Path) -> None:
    uri = backend.uri
    rows = rexctl.json("ls", uri)
    assert [(row["step"], row["attempt"], row["state"], row["resumes"]) for row in rows] == [
        (30, 2, "live", True), (20, 1, "live", False), (10, 1, "live", False)]  # fmt: skip
    shown = rexctl.json("show", uri, "20")
    assert (shown["sha256"], shown["store"]) == (chain.made[20].sha256(), uri)
    assert {entry["name"]: entry["shared_with"] for entry in shown["files"]}[STATE] == chain.made[10].name
    verified = rexctl("verify", JOB)
    assert verified.returncode == 0 and verified.stderr == ""
    assert [line.split()[:2] for line in verified.stdout.splitlines()] == [
        ["000002-000000030", "whole"], ["000001-000000020", "whole"], ["000001-000000010", "whole"],
        ["3", "checkpoints,"]]  # fmt: skip

    pulled = rexctl.json("pull", uri, "-o", "deep/copy")
    copy = rexctl.folder / "deep" / "copy"
    assert (pulled["step"], {path.name for path in copy.iterdir()}) == (30, {*pulled["files"], "manifest.json"})
    assert all(sha256(copy / entry.name) == entry.sha256 for entry in chain.made[30].files)
    assert (copy / "manifest.json").read_bytes() == chain.store.get(chain.made[30].name)
    exported = rexctl.json("export", JOB, "10", "--format", "safetensors", "-o", "weights")
    path = Path(exported["path"])
    assert path.name == f"rexnet_09-{sha256(path)[:8]}.safetensors" and exported["num_classes"] == 10

    before = chain.store.list("")
    assert rexctl.json("gc", uri, "--keep-last", "1", "--dry-run")["retired"] == [chain.made[10].name]
    assert chain.store.list("") == before
    assert rexctl.json("gc", uri, "--keep-last", "1")["retired"] == [chain.made[10].name]
    assert [row["state"] for row in rexctl.json("ls", uri)] == ["live", "live", "retired"]
    assert rexctl("verify", uri, "--all").returncode == 0

    altered(chain, chain.made[30], tmp_path)
    damaged = rexctl("verify", uri)
    assert damaged.returncode == 1 and "000002-000000030  damaged" in damaged.stdout
    refused = rexctl("pull", uri, "-o", "other/copy")
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1 and "state is altered" in refused.stderr
    assert rexctl.made() == {"deep", "weights"}


@pytest.mark.parametrize("backend", ["directory", "radosgw"], indirect=True)
def test_store_that_cannot_be_reached_is_one_sentence_and_leaves_nothing(
    backend: Backend, chain: Chain, rexctl: Rexctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = chain.store.list("")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # what is tried again, and how often, is tested with the store
    with backend.outage():
        for verb, *words in VERBS:
            done = rexctl(verb, JOB, *words)
            assert (done.returncode, done.stdout) == (3, ""), verb
            assert len(done.stderr.splitlines()) == 1 and "nothing was concluded" in done.stderr.lower(), done.stderr
    assert rexctl.made() == set()
    assert chain.store.list("") == before
    assert rexctl("verify", JOB).returncode == 0


@pytest.mark.parametrize("backend", ["radosgw"], indirect=True)
def test_store_that_falls_silent_in_mid_transfer_leaves_nothing_half_done(
    backend: Backend, chain: Chain, rexctl: Rexctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.server is not None
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with BreakingLine(backend.server.endpoint) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", line.endpoint)
        line.cuts_down = [200_000] * 1000  # small objects pass; of the state each connection brings this much
        for verb, *words in (["verify"], ["pull", "-o", "deep/copy"], ["export", "-o", "weights"]):
            cuts_before = line.cuts_made
            done = rexctl(verb, JOB, *words)
            assert (done.returncode, done.stdout) == (3, ""), verb
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert "cannot read objects/" in done.stderr and "nothing was concluded" in done.stderr
            assert line.cuts_made > cuts_before
    assert rexctl.made() == set()
