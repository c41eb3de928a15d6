"""The commit protocol's column: jobs from before it, and jobs with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from jobs.spec import build_spec
from jobs.states import Job
from orchestrator.store import Store, migrate
from orchestrator.store.store import _job_values
from orchestrator.store.tables import jobs

SPEC = build_spec({"name": "a", "program": {"module": "m"}})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path / 'store.db'}")
    yield made
    made.engine.dispose()


def test_job_from_before_the_column_is_create_only(store: Store) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).with_name("migrations")))
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    assert not store.exists  # not the newest schema
    old = {
        "id": "a-1", "spec": SPEC.model_dump(mode="json"), "name": "a", "priority": 0, "submitted_at": 1.0,
        "version": 0, "waiting": "", "metrics": {}, "store_uri": "file:///o",
    }  # fmt: skip
    values = {**old, **_job_values(Job(id="a-1", retry=SPEC.retry))}
    columns = [column for column in jobs.c if column.name in values]
    with store.engine.begin() as connection:
        names = ", ".join(column.name for column in columns)
        marks = ", ".join("?" * len(columns))
        bound = [column.type.bind_processor(store.engine.dialect) for column in columns]
        row = tuple(
            process(values[column.name]) if process else values[column.name]
            for column, process in zip(columns, bound, strict=True)
        )
        connection.exec_driver_sql(f"INSERT INTO jobs ({names}) VALUES ({marks})", row)
    store.migrate()
    assert store.get("a-1").commit_protocol == "create-only"


def test_job_keeps_the_protocol_it_was_submitted_with(store: Store) -> None:
    store.migrate()
    store.submit("b-1", SPEC, store_uri="file:///o", init_from=None, now=1.0, commit_protocol="allotted")
    assert store.get("b-1").commit_protocol == "allotted"
