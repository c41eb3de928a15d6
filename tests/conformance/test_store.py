"""The job store: compare-and-set, one transaction for state, event and effects, and a schema that migrations make."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from jobs.budgets import Cause
from jobs.errors import ConflictError, NotFoundError
from jobs.spec import build_spec
from jobs.states import AttemptEnded, Effect, GangGranted, ResumeRequested, State, StopRequested, WorkersReported
from orchestrator.store import JobRow, Stale, Store, migrate, tables
from orchestrator.store.changes import Changes

SPEC = build_spec({"name": "a", "program": {"module": "m", "args": ["x"]}, "retry": {"crash": 0}})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'store.db'}")
    made.migrate()
    yield made
    made.engine.dispose()


def submit(store: Store, job: str = "a-1") -> JobRow:
    store.submit(job, SPEC, store_uri="file:///o", init_from=None, now=1.0)
    return store.get(job)


def grant(store: Store, row: JobRow) -> JobRow:
    nodes = [{"id": "n", "host": "h", "address": "127.0.0.1"}]
    return store.apply(row, GangGranted(), now=2.0, action="gang_granted", nodes=nodes)


def test_migrations_make_exactly_the_tables_of_the_code(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    folder = Path(migrate.__file__).with_name("migrations")
    assert ScriptDirectory(str(folder)).get_current_head() == migrate.HEAD


def test_migrating_twice_changes_nothing(store: Store) -> None:
    row = submit(store)
    store.migrate()
    assert store.get(row.id) == row


def test_commit_is_seen_once_and_reading_is_not(store: Store) -> None:
    changes = Changes(store.engine)
    submit(store)
    assert changes.seen() and not changes.seen()
    store.get("a-1")
    assert not changes.seen()
    changes.close()


def test_spec_comes_back_as_it_went_in(store: Store) -> None:
    assert submit(store).spec == SPEC


def test_transition_writes_state_event_attempt_and_effect_together(store: Store) -> None:
    row = grant(store, submit(store))
    assert (row.state, row.job.attempt) == (State.LAUNCHING, 1)
    assert [entry["action"] for entry in store.events(row.id)] == ["submitted", "gang_granted"]
    assert [(e.effect, e.attempt) for e in store.pending_effects()] == [(Effect.LAUNCH, 1)]
    (attempt,) = store.attempts(row.id)
    assert attempt.nodes[0]["host"] == "h" and len(attempt.token) == 24


def test_failed_transaction_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    row = submit(store)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt  # between the state's write and the event's

    monkeypatch.setattr("orchestrator.store.store._log", killed)
    with pytest.raises(KeyboardInterrupt):
        grant(store, row)
    monkeypatch.undo()
    assert store.get(row.id) == row
    assert store.attempts(row.id) == [] and store.pending_effects() == []


def test_second_writer_of_the_same_version_is_told(store: Store) -> None:
    row = submit(store)
    grant(store, row)
    with pytest.raises(Stale):
        grant(store, row)
    assert len(store.attempts(row.id)) == 1


def test_of_many_racing_schedulers_one_grants(store: Store) -> None:
    row, won, lost = submit(store), [], []

    def race() -> None:
        try:
            won.append(grant(store, row))
        except Stale:
            lost.append(1)

    threads = [threading.Thread(target=race) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost), len(store.attempts(row.id))) == (1, 11, 1)


def test_users_wish_survives_a_concurrent_change(store: Store) -> None:
    row = grant(store, submit(store))
    store.apply(row, WorkersReported(attempt=1), now=3.0, action="workers_reported")
    row = store.request(row.id, StopRequested(cause=Cause.CANCELLED), action="cancel_requested")
    assert (row.state, row.job.stop_for) == (State.RUNNING, Cause.CANCELLED)
    assert store.attempt(row.id, 1).stop_at is not None


def test_end_sets_the_attempts_cause_and_the_jobs_end_and_resume_clears_it(store: Store) -> None:
    row = grant(store, submit(store))
    crash = AttemptEnded(attempt=1, cause=Cause.CRASH, progressed=False, detail="boom")
    row = store.apply(row, crash, now=9.0, action="attempt_ended")
    assert (row.state, row.finished_at, store.attempt(row.id, 1).cause) == (State.FAILED, 9.0, "crash")
    row = store.request(row.id, ResumeRequested(), action="resume_requested")
    assert (row.state, row.finished_at) == (State.QUEUED, None)
    with pytest.raises(ConflictError):
        store.request(row.id, ResumeRequested(), action="resume_requested")


def test_effects_are_done_once_and_retried_in_order(store: Store) -> None:
    row = grant(store, submit(store))
    (launch,) = store.pending_effects()
    store.effect_failed(launch, "no answer", retry_at=time.time() + 5)
    (again,) = store.pending_effects(row.id)
    assert (again.tries, again.id) == (1, launch.id)
    store.effect_done(again)
    assert store.pending_effects() == []


def test_job_is_found_by_an_unambiguous_beginning_only(store: Store) -> None:
    submit(store, "count-abc")
    submit(store, "count-abd")
    assert store.get("count-abc").id == "count-abc"
    with pytest.raises(NotFoundError, match="2 jobs begin like that"):
        store.get("count-ab")
    with pytest.raises(NotFoundError, match="no such job"):
        store.get("x")
    with pytest.raises(NotFoundError):
        store.get("count%")  # no pattern of SQL's


def test_time_of_loss_is_the_first_time_a_node_was_seen_dead(store: Store) -> None:
    node = {"id": "n", "host": "h", "address": "a", "cpus": 2.0, "npus": 0.0}
    for now, alive in ((1.0, True), (2.0, False), (3.0, False)):
        store.see_nodes([{**node, "alive": alive}], now=now)
    assert store.nodes()[0]["lost_since"] == 2.0
    store.see_nodes([{**node, "alive": True}], now=4.0)
    assert store.nodes()[0]["lost_since"] is None


def test_what_a_preflight_saw_stays_while_the_node_is_seen_again(store: Store) -> None:
    node = {"id": "n", "host": "h", "address": "a", "cpus": 2.0, "npus": 0.0, "alive": True}
    store.see_nodes([node], now=1.0)
    assert (store.nodes()[0]["preflight"], store.nodes()[0]["problem"]) == (None, "")
    store.note_node("n", incarnation="boot/1", preflight={"looked_at": 1.0}, problem="h has no disk")
    store.see_nodes([{**node, "cpus": 4.0}], now=2.0)
    store.see_nodes([], now=3.0)
    (row,) = store.nodes()
    assert (row["incarnation"], row["preflight"], row["problem"]) == ("boot/1", {"looked_at": 1.0}, "h has no disk")
    assert (row["cpus"], row["lost_since"]) == (4.0, 3.0)


def test_flags_hold_json(store: Store) -> None:
    assert store.flag("x") is None
    store.set_flag("x", {"a": 1})
    store.set_flag("x", [2])
    assert store.flag("x") == [2]
