"""`rexctl checkpoints` on real chains in a directory: what it prints, copies and deletes, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectStore, open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.gc import collect
from cluster.storage.chain.records import read_manifest, sealed_manifest
from cluster.storage.directory import DirectoryStore
from jobs.budgets import Cause
from jobs.errors import StoreUnavailable
from jobs.manifest import Manifest
from jobs.retention import Retention
from jobs.spec import build_spec
from jobs.states import AttemptEnded, GangGranted
from orchestrator.checkpoints import chains
from orchestrator.checkpoints.folders import growing
from orchestrator.cli import main as command_line
from orchestrator.store import Store
from tests.support.chains import committed, make_commit
from tests.support.stores import Failing

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


def test_ls_tells_every_state_newest_first(rexctl: Rexctl, chain: Chain) -> None:
    late = CheckpointStore(chain.store, JOB)
    late.start_attempt(3)
    chain.damage(make_commit(late, chain.scratch, 3, 70, chain.made["2-60"]))
    CheckpointStore(chain.store, JOB).start_attempt(4)
    assert states(rexctl("ls", chain.uri, "--json"))["3-70"] == "quarantined"
    collect(chain.store, JOB, Retention(last=2))
    flip(chain.root / chain.made["2-50"].name)
    done = rexctl("ls", chain.uri, "--json")
    assert done.code == 0
    assert states(done) == {
        "3-70": "retired", "2-60": "live", "2-50": "damaged", "1-40": "retired", "1-30": "retired", "1-20": "retired",
        "1-10": "retired",
    }  # fmt: skip
    assert [row["manifest"] for row in done.json if row["resumes"]] == [chain.made["2-60"].name]


def test_ls_prints_a_line_for_each_and_what_is_wrong(rexctl: Rexctl, chain: Chain) -> None:
    done = rexctl("ls", chain.uri)
    title, *rows = done.out.splitlines()
    assert title.split() == ["STEP", "EPOCH", "ATTEMPT", "STATE", "SIZE", "TOP-1", "SAVED", "MANIFEST"]
    assert [row.split()[0] for row in rows[:6]] == ["60", "50", "40", "30", "20", "10"]
    assert rows[0].split()[3:5] == ["live", "*"] and rows[0].endswith("000002-000000060")
    assert "quarantined" in rows[2] and "0.6000" in rows[2] and "KiB" in rows[2]
    assert rows[6].startswith("* where the next attempt begins")
    assert rows[7].startswith("000001-000000040: attempt 2 found: ") and "state is altered" in rows[7]
    assert len(rows) == 8


def test_commit_of_a_replaced_attempt_is_a_dead_branch(rexctl: Rexctl, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path / 'store'}")
    zombie = CheckpointStore(store, JOB)
    zombie.start_attempt(1)
    make_commit(zombie, tmp_path, 1, 10, None)
    name = make_commit(zombie, tmp_path, 1, 20, read_manifest(store, "manifests/000001-000000010.json")).name
    body = (tmp_path / "store" / name).read_bytes()
    (tmp_path / "store" / name).unlink()
    CheckpointStore(store, JOB).start_attempt(2)
    store.create(name, body)  # its request was under way all the time
    assert states(rexctl("ls", store.uri, "--json")) == {"1-20": "dead branch", "1-10": "live"}
    pulled = rexctl("pull", store.uri, "20", "-o", tmp_path / "copy")
    assert pulled.code == 0 and "lies on a dead branch" in pulled.err


def test_job_and_uri_name_the_same_chain(rexctl: Rexctl, chain: Chain, tmp_path: Path) -> None:
    submit(tmp_path / "home", chain.uri)
    assert rexctl("ls", "count", "--json").json == rexctl("ls", chain.uri, "--json").json


def test_job_without_a_checkpoint_says_so(rexctl: Rexctl, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path / 'none'}")
    submit(tmp_path / "home", store.uri)
    done = rexctl("ls", JOB)
    assert (done.code, done.out) == (0, f"{JOB} has no checkpoint yet\n")
    assert rexctl("ls", JOB, "--json").json == []
    CheckpointStore(store, JOB).start_attempt(1)
    for words in (["show", JOB], ["verify", JOB, "10"], ["pull", JOB, "-o", tmp_path / "copy"], ["export", JOB]):
        done = rexctl(*words)
        assert done.code == 2 and done.err.startswith(f"rexctl: job {JOB} has no checkpoint (")
    assert rexctl("gc", JOB).out == "deleted 0 objects, 0 B\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "{uri}", "45"], r"no checkpoint at step 45 (valid steps: 10, 20, 30, 40, 50, 60)"),
        (["show", "{uri}", "3-10"], "has no manifests/000003-000000010.json (valid steps: 10,"),
        (["show", "{uri}", "newest"], "'newest' is neither a step nor a manifest (say 120, or"),
        (["ls", "file://{root}/none"], "there is no chain of checkpoints in file://"),
        (["ls", "{root}"], "is neither a job's id nor a store's URI (a folder is said as file:///"),
        (["ls", "sj://bucket/x"], "has no scheme that is known"),
        (["ls", "x"], "there is no job store in"),
        (["pull", "{uri}"], "pull needs a folder (say -o DIR)"),
        (["pull", "{uri}", "-o", "{root}"], "is there and is no empty folder"),
        (["pull", "{uri}", "-o", "/proc/none/x"], "cannot write to /proc/none: "),
        (["verify", "{uri}", "10", "--all"], "takes a checkpoint or --all"),
        (["export", "{uri}"], "holds no state.safetensors"),
        (["gc", "{uri}", "--min"], "say nothing without --keep-best"),
    ],
)
def test_mistake_ends_with_2_and_one_sentence(rexctl: Rexctl, chain: Chain, words: list[str], said: str) -> None:
    before = chain.store.list("")
    done = rexctl(*(word.format(uri=chain.uri, root=chain.root) for word in words))
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1 and done.out == ""
    assert chain.store.list("") == before


def test_unknown_step_of_many_names_the_nearest(rexctl: Rexctl, tmp_path: Path) -> None:
    writer = CheckpointStore(open_store(f"file://{tmp_path / 'store'}"), JOB)
    writer.start_attempt(1)
    committed(writer, tmp_path, 1, list(range(10, 130, 10)), None)
    done = rexctl("show", f"file://{tmp_path / 'store'}", "101")
    assert "(the nearest of 12 steps: 50, 60, 70, 80, 90, 100, 110, 120)" in done.err


def test_show_gives_the_whole_manifest_and_what_is_shared(rexctl: Rexctl, chain: Chain) -> None:
    wanted = chain.made["1-30"]
    for which in ("30", "1-30", "000001-000000030", wanted.name):
        values = rexctl("show", chain.uri, which, "--json").json
        assert values["sha256"] == wanted.sha256() and values["nonce"] == wanted.nonce
    assert (values["store"], values["parent"], values["metrics"]) == (chain.uri, wanted.parent, wanted.metrics)
    files = {entry["name"]: entry for entry in values["files"]}
    assert files["frozen"]["shared_with"] == chain.made["1-10"].name
    assert files["state"]["shared_with"] is None and files["state"]["key"] == wanted.file("state").key
    printed = rexctl("show", chain.uri, "30").out
    for part in (wanted.name, wanted.sha256(), wanted.file("state").sha256, "shared with 000001-000000010", "top1 0.7",
                 wanted.config_sha256, "metrics.jsonl, 1.2 KiB, record"):  # fmt: skip
        assert part in printed
    assert rexctl("show", chain.uri, "--json").json["manifest"] == chain.made["2-60"].name


def test_verify_of_a_whole_chain_ends_with_0_and_writes_nothing(rexctl: Rexctl, chain: Chain) -> None:
    before = {path: path.stat().st_mtime_ns for path in chain.root.rglob("*")}
    done = rexctl("verify", chain.uri)
    assert done.code == 0 and done.err == ""
    lines = done.out.splitlines()
    assert [line.split()[:4] for line in lines[:-1]] == [
        [name, "whole", "step", step] for name, step in (
            ("000002-000000060", "60,"), ("000002-000000050", "50,"), ("000001-000000030", "30,"),
            ("000001-000000020", "20,"), ("000001-000000010", "10,"))
    ]  # fmt: skip
    assert lines[-1].startswith("5 checkpoints, ") and lines[-1].endswith("none damaged")
    assert {path: path.stat().st_mtime_ns for path in chain.root.rglob("*")} == before


def test_verify_names_everything_that_is_damaged(rexctl: Rexctl, chain: Chain) -> None:
    chain.damage(chain.made["2-60"], "state")
    (chain.root / chain.made["2-60"].file("metrics.jsonl").key).unlink()
    chain.damage(chain.made["1-10"], "frozen")
    flip(chain.root / chain.made["2-50"].name)
    done = rexctl("verify", chain.uri, "--json")
    assert done.code == 1
    wrong = {f"{one['manifest'][10:-5]}": one["problems"] for one in done.json["checkpoints"]}
    assert [len(wrong[name]) for name in sorted(wrong)] == [1, 1, 1, 1, 2]
    altered, missing = wrong["000002-000000060"]
    assert "file state is altered" in altered and "metrics.jsonl is missing" in missing
    assert "manifests/000001-000000020.json: file frozen is altered" in wrong["000001-000000020"][0]
    assert done.json["num_damaged"] == 5
    printed = rexctl("verify", chain.uri, "60").out.splitlines()
    assert printed[0] == "000002-000000060  damaged   step 60" and printed[1].strip() == altered
    assert printed[-1].endswith("1 damaged")


def test_verify_of_everything_reads_dead_branches_and_what_is_left_of_retired_ones(
    rexctl: Rexctl, chain: Chain
) -> None:
    done = rexctl("verify", chain.uri, "--all", "--json")
    assert done.code == 1
    assert [one["step"] for one in done.json["checkpoints"] if one["verdict"] == "damaged"] == [40]
    collect(chain.store, JOB, Retention(last=1))
    assert rexctl("verify", chain.uri, "--all").code == 0
    (chain.root / chain.made["1-10"].file("metrics.jsonl").key).unlink()
    done = rexctl("verify", chain.uri, "--all", "--json")
    assert done.code == 1 and [one["step"] for one in done.json["checkpoints"] if one["problems"]] == [10]


def test_verify_while_a_collection_retires_is_no_damage(
    rexctl: Rexctl, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Collecting(DirectoryStore):
        """As soon as the first file is read, a collection comes in between."""

        begun = False

        def get_file(self, key: str, path: Path) -> str:
            if not self.begun:
                self.begun = True
                collect(chain.store, JOB, Retention(last=1))
            return super().get_file(key, path)

    monkeypatch.setattr(chains, "open_store", lambda uri: Collecting(chain.root))
    done = rexctl("verify", chain.uri, "--json")
    assert done.code == 0
    assert {one["verdict"] for one in done.json["checkpoints"]} == {"whole"}
    assert [one["state"] for one in done.json["checkpoints"]] == ["live", "retired", "live", "retired", "retired"]


def test_chain_without_a_live_checkpoint_says_what_its_newest_is(rexctl: Rexctl, chain: Chain) -> None:
    for info in chain.store.list("manifests/"):
        flip(chain.root / info.key)
    done = rexctl("show", chain.uri)
    assert done.code == 2
    assert "no checkpoint that could be resumed: the newest, manifests/000002-000000060.json is damaged, " in done.err


def test_manifest_that_somebody_names_and_nobody_has_is_damage(rexctl: Rexctl, chain: Chain, tmp_path: Path) -> None:
    for name in ("2-50", "1-30", "2-60"):  # a parent, what attempt 2 started from, and the newest, which no one names
        (chain.root / chain.made[name].name).unlink()
    done = rexctl("verify", chain.uri)
    assert done.code == 1 and "manifests/000001-000000030.json is missing: attempt 2 names it" in done.out
    assert "000000060" not in done.out and "000000050" not in done.out
    submit(tmp_path / "home", chain.uri)
    store = Store(f"sqlite:///{tmp_path / 'home' / 'store.db'}")
    store.note(JOB, checkpoint={"manifest": chain.made["2-60"].name, "step": 60, "sha256": "0" * 64})
    store.engine.dispose()
    assert f"000060.json is missing: job {JOB} names it" in rexctl("verify", JOB).out
    (chain.root / chain.made["2-60"].name).write_bytes(sealed_manifest(chain.made["2-60"]))
    assert "000050.json is missing: manifests/000002-000000060.json names it" in rexctl("verify", chain.uri).out
    assert states(rexctl("ls", chain.uri, "--json"))["2-50"] == "damaged"


def test_store_that_does_not_answer_ends_with_3(rexctl: Rexctl, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    submit(tmp_path / "home", f"file://{tmp_path / 'file'}")
    for words in (["ls"], ["verify"], ["gc"]):
        done = rexctl(*words, JOB)
        assert done.code == 3 and "is not a folder" in done.err and len(done.err.splitlines()) == 1


def test_store_that_is_empty_although_the_job_has_committed_ends_with_3(rexctl: Rexctl, tmp_path: Path) -> None:
    uri = f"file://{tmp_path / 'unmounted'}"
    submit(tmp_path / "home", uri)
    store = Store(f"sqlite:///{tmp_path / 'home' / 'store.db'}")
    store.note(JOB, checkpoint={"manifest": "manifests/000001-000000010.json", "step": 10, "sha256": "0" * 64})
    store.engine.dispose()
    for words in (["ls"], ["verify"], ["gc"]):
        done = rexctl(*words, JOB)
        assert done.code == 3 and "is its disk or share mounted" in done.err and len(done.err.splitlines()) == 1
    assert not (tmp_path / "unmounted").exists()


def test_checkpoint_of_another_job_is_damage(rexctl: Rexctl, chain: Chain) -> None:
    rewritten(chain, chain.made["1-20"], job="other-3c4d")
    done = rexctl("verify", chain.uri)
    assert done.code == 1 and "belongs to job other-3c4d, not to count-1a2b" in done.out


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


def test_growing_counts_what_is_written_so_far(tmp_path: Path) -> None:
    told: list[int] = []
    seen = threading.Event()

    def note(now: int) -> None:
        told.append(now)
        if now >= 8192:
            seen.set()

    with growing(tmp_path / "state", note):
        with (tmp_path / ".state.123.tmp").open("wb") as file:
            file.write(b"x" * 8192)
            file.flush()
            os.fsync(file.fileno())
        (tmp_path / ".other.123.tmp").write_bytes(b"y" * 10)
        assert seen.wait(30)
    assert set(told) <= {0, 8192}


def drawn_by(monkeypatch: pytest.MonkeyPatch, term: str, streams: tuple[str, ...], *words: str) -> str:
    """What comes to a terminal that stands behind these streams, while `rexctl checkpoints ...` runs."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "argv", ["rexctl", "checkpoints", *words])
    master, slave = pty.openpty()
    drawn: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # EIO: the last writer has closed it
            while block := os.read(master, 65536):
                drawn.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        for stream in streams:
            patch.setattr(sys, stream, terminal)
        with pytest.raises(SystemExit):
            command_line.main()
    reader.join()
    os.close(master)
    return b"".join(drawn).decode()


def test_bar_is_for_terminals_alone(
    rexctl: Rexctl, chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = rexctl("verify", chain.uri)
    assert done.err == ""
    drawn = drawn_by(monkeypatch, "xterm", ("stderr",), "verify", chain.uri)
    assert "verifying" in drawn and "KiB" in drawn and "whole" not in drawn
    assert capsys.readouterr().out == done.out  # the results stay on stdout
    assert drawn_by(monkeypatch, "dumb", ("stderr",), "verify", chain.uri) == ""


def test_verdicts_in_a_terminal_stand_above_the_bar(
    rexctl: Rexctl, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rexctl("verify", chain.uri).out.splitlines()
    drawn = drawn_by(monkeypatch, "xterm", ("stdout", "stderr"), "verify", chain.uri)
    assert "verifying" in drawn
    screen = on_screen(drawn)
    assert [line for line in screen if line] == expected


def on_screen(drawn: str) -> list[str]:
    """The lines that a terminal shows at the end, for the few control sequences that bars use."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", drawn):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b["):
            count = int(re.sub(r"\D", "", part) or 1)
            if part.endswith("A"):
                row = max(0, row - count)
            elif part == "\x1b[2K":
                lines[row] = ""
            else:
                assert part[-1] in "mlh", part  # colours, the cursor's look
        else:
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return lines


def test_verdicts_that_are_known_are_told_before_the_store_falls_silent(
    rexctl: Rexctl, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = Failing(chain.store, "get_file", chain.made["1-30"].file("state").key)
    monkeypatch.setattr(chains, "open_store", lambda uri: silent)
    told = rexctl("verify", chain.uri)
    assert told.code == 3 and len(told.err.splitlines()) == 1 and "timed out" in told.err
    assert [line.split()[:2] for line in told.out.splitlines()] == [
        ["000002-000000060", "whole"], ["000002-000000050", "whole"]
    ]  # fmt: skip
    assert (rexctl("verify", chain.uri, "--json").out, rexctl("verify", chain.uri, "--json").code) == ("", 3)


def test_verdict_is_told_as_soon_as_it_is_known(
    rexctl: Rexctl, chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    class Watching(DirectoryStore):
        """Looks, whenever a state is read, at what has been printed."""

        def get_file(self, key: str, path: Path) -> str:
            if key == chain.made["1-10"].file("state").key:
                told.extend(capsys.readouterr().out.splitlines())
            return super().get_file(key, path)

    monkeypatch.setattr(chains, "open_store", lambda uri: Watching(chain.root))
    rest = rexctl("verify", chain.uri).out.splitlines()
    assert [line.split()[3] for line in told] == ["60,", "50,", "30,", "20,"]
    assert len(rest) == 2 and rest[0].startswith("000001-000000010  whole")
