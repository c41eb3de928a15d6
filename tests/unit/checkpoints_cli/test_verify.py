"""`rexctl checkpoints verify`: every damage by name, its exit codes, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.storage.chain.gc import collect
from cluster.storage.chain.records import sealed_manifest
from cluster.storage.directory import DirectoryStore
from jobs.retention import Retention
from orchestrator.checkpoints import chains
from orchestrator.store import Store
from tests.support.chain_cli import JOB, Chain, Rexctl, flip, rewritten, states, submit
from tests.support.stores import Failing


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
