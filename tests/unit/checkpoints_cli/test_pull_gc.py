"""`rexctl checkpoints pull` and `gc`: what they copy and delete."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.gc import collect
from cluster.storage.directory import DirectoryStore
from jobs.budgets import Cause
from jobs.errors import StoreUnavailable
from jobs.retention import Retention
from jobs.states import AttemptEnded
from orchestrator.checkpoints import chains
from orchestrator.store import Store
from tests.support.chain_cli import JOB, Chain, Rexctl, rewritten, submit
from tests.support.chains import make_commit
from tests.support.stores import Failing


def test_pull_brings_the_files_and_the_sealed_manifest(rexctl: Rexctl, chain: Chain, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "copy"
    done = rexctl("pull", chain.uri, "30", "-o", target, "--json")
    assert done.code == 0 and done.json["path"] == str(target)
    manifest = chain.made["1-30"]
    assert {path.name for path in target.iterdir()} == {"state", "metrics.jsonl", "frozen", "manifest.json"}
    for entry in manifest.files:
        assert hashlib.sha256((target / entry.name).read_bytes()).hexdigest() == entry.sha256
    assert (target / "manifest.json").read_bytes() == (chain.root / manifest.name).read_bytes()
    (tmp_path / "empty").mkdir()
    assert rexctl("pull", chain.uri, "-o", tmp_path / "empty").code == 0
    assert (tmp_path / "empty" / "state").exists()


def test_pull_of_a_damaged_checkpoint_leaves_nothing(rexctl: Rexctl, chain: Chain, tmp_path: Path) -> None:
    chain.damage(chain.made["1-30"], "frozen")
    out = tmp_path / "out"
    out.mkdir()
    done = rexctl("pull", chain.uri, "30", "-o", out / "copy")
    assert done.code == 1 and "file frozen is altered" in done.err and list(out.iterdir()) == []


def test_pull_of_a_retired_checkpoint_says_that_it_is_gone(rexctl: Rexctl, chain: Chain, tmp_path: Path) -> None:
    collect(chain.store, JOB, Retention(last=1))
    done = rexctl("pull", chain.uri, "10", "-o", tmp_path / "copy")
    assert done.code == 2 and "is retired: a collection has deleted it" in done.err
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "manifest.json", "a/../../outside"])
def test_file_name_that_leads_elsewhere_is_refused(rexctl: Rexctl, chain: Chain, tmp_path: Path, name: str) -> None:
    manifest = chain.made["1-30"]
    rewritten(chain, manifest, files=(manifest.file("state").model_copy(update={"name": name}),))
    done = rexctl("pull", chain.uri, "30", "-o", tmp_path / "copy")
    assert done.code == 2 and "cannot be put into a folder" in done.err
    assert not (tmp_path / "copy").exists() and not (tmp_path / "outside").exists()


def test_gc_without_policy_deletes_dead_branches_alone(rexctl: Rexctl, chain: Chain) -> None:
    before = chain.store.list("")
    dry = rexctl("gc", chain.uri, "--dry-run")
    assert dry.code == 0 and chain.store.list("") == before
    assert dry.out.splitlines()[-2:] == ["to go     000001-000000040", "would delete 1 object, 800 B"]
    done = rexctl("gc", chain.uri)
    assert done.out.splitlines()[-2:] == ["retired   000001-000000040", "deleted 1 object, 800 B"]
    assert [line.split(maxsplit=2)[1:] for line in done.out.splitlines()[:-2]] == [
        ["000002-000000060", "the newest that verifies"], ["000002-000000050", "all are kept"],
        ["000001-000000030", "attempt 2 started from it"], ["000001-000000020", "all are kept"],
        ["000001-000000010", "all are kept"],
    ]  # fmt: skip
    assert chain.made["1-40"].file("state").key not in {info.key for info in chain.store.list("")}
    assert rexctl("gc", chain.uri).out.splitlines()[-1] == "deleted 0 objects, 0 B"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--keep-last", "2"], [60, 50, 30]),
        (["--keep-every", "20"], [60, 30, 20]),
        (["--keep-best", "1"], [60, 30, 10]),
        (["--keep-best", "1", "--min"], [60, 30]),
        (["--keep-best", "1", "--metric", "none"], [60, 30]),
        (["--keep-last", "1", "--keep-every", "20", "--keep-best", "1"], [60, 30, 20, 10]),
    ],
)
def test_gc_keeps_what_the_options_say(rexctl: Rexctl, chain: Chain, words: list[str], kept: list[int]) -> None:
    wanted = sorted(f"manifests/{1 if step < 50 else 2:06d}-{step:09d}.json" for step in kept)
    dry = rexctl("gc", chain.uri, *words, "--dry-run", "--json").json
    done = rexctl("gc", chain.uri, *words, "--json").json
    assert sorted(done["kept"]) == sorted(dry["kept"]) == wanted
    assert (dry["retired"], dry["objects"]) == (done["retired"], done["objects"]) and done["objects"]
    live = [row["step"] for row in rexctl("ls", chain.uri, "--json").json if row["state"] == "live"]
    assert live == kept and rexctl("verify", chain.uri).code == 0


class Allotted(DirectoryStore):
    """A directory that says it cannot fence attempts."""

    protocol = "allotted"


def test_gc_without_fencing_needs_a_job_that_does_not_run(
    rexctl: Rexctl, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "open_store", lambda uri: Allotted(chain.root))
    before = chain.store.list("")
    assert rexctl("gc", chain.uri, "--dry-run").code == 0
    unknown = rexctl("gc", chain.uri)
    assert unknown.code == 2 and "name the job instead of the URI" in unknown.err
    submit(tmp_path / "running", chain.uri, running=True)
    running = rexctl("gc", JOB, "--home", tmp_path / "running")
    assert running.code == 2 and f"job {JOB} is launching" in running.err
    assert chain.store.list("") == before
    submit(tmp_path / "home", chain.uri)
    assert rexctl("gc", JOB).code == 0 and len(chain.store.list("objects/")) == len(before_objects(before)) - 1


def before_objects(listed: list[Any]) -> list[Any]:
    return [info for info in listed if info.key.startswith("objects/")]


def test_gc_of_a_job_knows_which_attempts_have_ended(rexctl: Rexctl, tmp_path: Path) -> None:
    uri = f"file://{tmp_path / 'store'}"
    store = open_store(uri)
    writer = CheckpointStore(store, JOB)
    writer.start_attempt(1)
    manifest = make_commit(writer, tmp_path, 1, 10, None)
    dying = CheckpointStore(Failing(store, "create", "manifests/"), JOB)
    with pytest.raises(StoreUnavailable):
        make_commit(dying, tmp_path, 1, 20, manifest)
    assert rexctl("gc", uri).out.splitlines()[-1] == "left alone 2 that an attempt may be about to name"
    submit(tmp_path / "running", uri, running=True)
    assert rexctl("gc", JOB, "--home", tmp_path / "running", "--json").json["num_unsettled"] == 2
    submit(tmp_path / "home", uri, running=True)
    jobs = Store(f"sqlite:///{tmp_path / 'home' / 'store.db'}")
    ended = AttemptEnded(attempt=1, cause=Cause.CONFIG, progressed=True)
    jobs.apply(jobs.get(JOB), ended, now=3.0, action="attempt_ended")
    jobs.engine.dispose()
    done = rexctl("gc", JOB, "--json").json
    assert (len(done["objects"]), done["num_unsettled"]) == (2, 0)
    assert rexctl("verify", JOB).code == 0
