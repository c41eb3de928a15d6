"""The store doctor: what it finds on real stores, on lying ones, and what follows for a submit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import ObjectStore, open_store
from cluster.storage.doctor import (
    CREATE_ONLY,
    CREATE_ONLY_RACE,
    LIST_AFTER_WRITE,
    READ_AFTER_WRITE,
    diagnose,
    examine,
)
from cluster.storage.probe import probe
from jobs import contract
from jobs.errors import AlreadyExistsError, ObjectNotFound, StoreUnavailable, UnsafeStore
from jobs.spec import build_spec
from orchestrator.control.effects import build_launch
from orchestrator.preview import preview_rows
from orchestrator.settings import Home
from orchestrator.stack import Stack
from orchestrator.storage import diagnose_and_remember, protocol_for
from orchestrator.store import Store
from orchestrator.submit import submit
from orchestrator.view import job_view
from tests.conformance.backends import Backend
from tests.support.proxies import LyingStore

REPOSITORY = Path(__file__).resolve().parents[2]
SPEC = build_spec({"name": "a", "program": {"module": "m"}})
BASE = {READ_AFTER_WRITE: True, LIST_AFTER_WRITE: True, CREATE_ONLY: True, CREATE_ONLY_RACE: True}
THROUGHPUT = {"put throughput": None, "get throughput": None}
EXPECTED: dict[str, dict[str, bool | None]] = {
    "directory": {**BASE, "fsync of file and folder": True, "free space": True, **THROUGHPUT},
    "radosgw": {
        **BASE,
        "If-Match put, ETag quoted": False,
        "If-Match put, ETag unquoted": True,
        "If-Match delete": False,
        "If-None-Match on multipart completion": False,
        "wrong payload SHA-256 refused": True,
        "wrong checksum SHA-256 refused": False,
        "wrong MD5 refused": True,
        "checksum trailers": True,
        "clock skew": True,
        **THROUGHPUT,
    },
}


def leave_nothing(store: ObjectStore) -> None:
    assert store.list("") == []
    assert store.leftovers("") == []


@pytest.mark.parametrize("backend", ["directory", "radosgw"], indirect=True)
def test_doctor_finds_what_the_store_is_known_to_do(backend: Backend) -> None:
    found = diagnose(backend.uri)
    assert {check.name: check.holds for check in found.checks} == EXPECTED[backend.name]
    assert (found.protocol, found.uri) == ("create-only", backend.uri)
    leave_nothing(backend.open())
    if backend.name == "directory":
        root = Path(backend.uri.removeprefix("file://"))
        assert [path.name for path in (root / "doctor").iterdir()] == []


@pytest.mark.parametrize("backend", ["moto"], indirect=True)
def test_store_that_looks_before_it_writes_is_judged_by_the_race(backend: Backend) -> None:
    found = diagnose(backend.uri)
    holds = {check.name: check.holds for check in found.checks}
    assert [holds[name] for name in (READ_AFTER_WRITE, LIST_AFTER_WRITE, CREATE_ONLY)] == [True] * 3
    assert holds["wrong checksum SHA-256 refused"] is False
    assert found.protocol == ("create-only" if holds[CREATE_ONLY_RACE] else "allotted")
    leave_nothing(backend.open())


@contextmanager
def lying(backend: Backend, monkeypatch: pytest.MonkeyPatch, **lies: bool) -> Iterator[None]:
    assert backend.server is not None
    with LyingStore(backend.server.endpoint, **lies) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield
    monkeypatch.setenv("AWS_ENDPOINT_URL", backend.server.endpoint)


@pytest.mark.parametrize("backend", ["moto"], indirect=True)
def test_store_that_ignores_if_none_match_gets_the_allotted_protocol(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lying(backend, monkeypatch, ignores_conditions=True):
        found = diagnose(backend.uri)
    assert (found.check(CREATE_ONLY).holds, found.check(CREATE_ONLY_RACE).holds) == (False, False)
    assert "accepted, and replaced" in found.check(CREATE_ONLY).seen
    assert found.protocol == "allotted"
    leave_nothing(backend.open())


@pytest.mark.parametrize("backend", ["moto"], indirect=True)
def test_store_whose_listings_lag_is_refused_and_nothing_is_queued(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.yaml").write_text(f"objects: {backend.uri}\n")
    home = Home(tmp_path / "home")
    store = Store(home.database_url)
    store.migrate()
    with closing_engine(store):
        with lying(backend, monkeypatch, stale_listings=True):
            found = diagnose(backend.uri)
            assert (found.protocol, found.check(LIST_AFTER_WRITE).holds) == (None, False)
            with pytest.raises(UnsafeStore, match=r"no commit protocol is safe .* listings lag"):
                submit(SPEC, store, Stack(home))
            done = rexctl(home, "storage", "doctor")
            assert (done.returncode, done.stderr) == (3, "")
            assert "none is safe" in done.stdout
        assert store.jobs() == []
        leave_nothing(backend.open())
        with pytest.raises(StoreUnavailable, match="could not be reached"):
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            submit(SPEC, store, Stack(home))
        assert store.jobs() == []


class Wrapped:
    """A store whose single methods a test replaces."""

    def __init__(self, store: ObjectStore, **replaced: Callable[..., Any]) -> None:
        self._store, self._replaced = store, replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name) or getattr(self._store, name)


@pytest.fixture
def plain(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path / 'objects'}")


def test_store_that_looks_then_writes_loses_the_race(plain: ObjectStore, tmp_path: Path) -> None:
    def create(key: str, body: bytes) -> None:
        try:
            there: bytes | None = plain.get(key)
        except ObjectNotFound:
            there = None
        time.sleep(0.05)  # the others look in the meantime
        if there not in (None, body):
            raise AlreadyExistsError(key)
        content = tmp_path / uuid.uuid4().hex
        content.write_bytes(body)
        plain.put_file(key, content)

    found = examine(Wrapped(plain, create=create))
    assert (found.check(CREATE_ONLY).holds, found.check(CREATE_ONLY_RACE).holds) == (True, False)
    assert found.protocol == "allotted"
    leave_nothing(plain)


def test_store_that_reads_old_content_is_refused(plain: ObjectStore) -> None:
    newest: dict[str, bytes] = {}

    def get(key: str) -> bytes:
        return newest.setdefault(key, plain.get(key))

    found = examine(Wrapped(plain, get=get))
    assert (found.check(READ_AFTER_WRITE).holds, found.protocol) == (False, None)
    leave_nothing(plain)


@pytest.mark.parametrize("broken", ["create", "get_file", "list"])
def test_doctor_that_fails_half_way_cleans_up(store: ObjectStore, broken: str) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("timed out")

    with pytest.raises(StoreUnavailable, match="timed out"):
        examine(Wrapped(store, **{broken: fail}))
    leave_nothing(store)


def test_probe_passes_and_leaves_nothing(store: ObjectStore) -> None:
    probe(store)
    leave_nothing(store)


@pytest.mark.parametrize(
    ("replaced", "seen"),
    [
        ({"get": lambda key: b"other"}, "reads back otherwise"),
        ({"list": lambda prefix: []}, "is not listed"),
        ({"delete": lambda key: None}, "still listed"),
    ],
)
def test_probe_of_a_store_that_does_not_keep_its_word_says_which(
    plain: ObjectStore, replaced: dict[str, Callable[..., Any]], seen: str
) -> None:
    with pytest.raises(StoreUnavailable, match=seen):
        probe(Wrapped(plain, **replaced))


def test_probe_of_a_store_that_does_not_answer_is_unavailable(backend: Backend) -> None:
    store = backend.open()
    store.list("")  # a directory that vanishes before it was ever seen is an empty one
    with backend.outage(), pytest.raises(StoreUnavailable):
        probe(store)
    leave_nothing(store)


@contextmanager
def closing_engine(store: Store) -> Iterator[Store]:
    try:
        yield store
    finally:
        store.engine.dispose()


@pytest.fixture
def job_store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    made.migrate()
    with closing_engine(made):
        yield made


def test_doctor_is_asked_once_for_each_store(tmp_path: Path, job_store: Store) -> None:
    root = tmp_path / "objects"
    uri = f"file://{root}"
    assert protocol_for(uri, job_store) == "create-only"
    assert root.is_dir()
    (root / "doctor").rmdir()
    assert protocol_for(uri, job_store) == "create-only"
    assert not (root / "doctor").exists()  # it was not there again
    diagnose_and_remember(uri, job_store)
    assert (root / "doctor").exists()


def test_chosen_protocol_goes_with_the_job_to_its_workers(tmp_path: Path, job_store: Store) -> None:
    home = Home(tmp_path / "home")
    row = submit(SPEC, job_store, Stack(home))
    assert row.commit_protocol == "create-only"
    assert job_view(job_store, row.id, mlflow_uri="x")["commit_protocol"] == "create-only"
    job_store.submit("b", SPEC, store_uri="file:///o", init_from=None, now=time.time(), commit_protocol="allotted")
    row = job_store.get("b")
    _, attempt = preview_rows(SPEC, home)
    plan = build_launch(row, attempt, home, tracking_uri="x", mlflow_run=None)
    assert plan.env[contract.ENV_COMMIT_PROTOCOL] == "allotted"


def rexctl(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", *words, "--home", str(home.path)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)


def test_command_prints_the_diagnosis_and_remembers_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    with closing_engine(Store(home.database_url)) as store:
        store.migrate()
        done = rexctl(home, "storage", "doctor", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        shown = json.loads(done.stdout)
        assert (shown["uri"], shown["protocol"]) == (home.objects_uri, "create-only")
        assert {check["name"]: check["holds"] for check in shown["checks"]} == EXPECTED["directory"]
        (tmp_path / "home" / "objects" / "doctor").rmdir()
        assert protocol_for(home.objects_uri, store) == "create-only"
        assert not (tmp_path / "home" / "objects" / "doctor").exists()
    table = rexctl(home, "storage", "doctor", f"file://{tmp_path / 'other'}")
    assert table.returncode == 0
    assert "commit protocol: create-only" in table.stdout
    refused = rexctl(home, "storage", "doctor", "gs://bucket")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
