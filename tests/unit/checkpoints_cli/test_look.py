"""`rexctl checkpoints ls` and `show`: what they print, and what each command says of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.chain.gc import collect
from cluster.storage.chain.records import read_manifest
from jobs.retention import Retention
from tests.support.chain_cli import JOB, Chain, Rexctl, flip, states, submit
from tests.support.chains import committed, make_commit


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
