"""Reading and writing the store. Every transition is one transaction: state, event and pending effects together.

Writes compare the row's version and set; whoever comes second gets `Stale`, reloads and looks again.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.sql import Select

from jobs.budgets import Cause
from jobs.errors import NotFoundError, RetryableError, RexError, SpecError
from jobs.spec import JobSpec, build_spec
from jobs.states import AttemptEnded, Effect, Event, GangGranted, Job, State, StopRequested, transition
from orchestrator.store import migrate
from orchestrator.store.tables import attempts, effects, events, flags, jobs, nodes

_LOG = logging.getLogger("rexctl.store")
_FORGET_NODE_S = 3600.0
_PREFLIGHT = ("incarnation", "preflight", "problem")  # columns that Ray's list of nodes says nothing about
_ID_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


class Stale(RexError):
    """The row changed since it was read: reload and decide again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job with all that the store knows of it; `job` is the part that the rules see."""

    job: Job
    spec: JobSpec
    version: int
    submitted_at: float
    finished_at: float | None
    waiting: str
    checkpoint: dict[str, Any] | None
    metrics: dict[str, float]
    init_from: dict[str, Any] | None
    store_uri: str
    mlflow_run: str | None
    unreachable_since: float | None
    commit_protocol: str = "create-only"

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def state(self) -> State:
        return self.job.state


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One attempt; columns as in `orchestrator.store.tables.attempts`."""

    job_id: str
    number: int
    token: str
    nodes: list[dict[str, str]]
    plan: dict[str, Any] | None
    granted_at: float
    ready_at: float | None
    first_step_at: float | None
    stop_at: float | None
    ended_at: float | None
    cause: str | None
    detail: str
    from_step: int | None
    to_step: int
    resumed: dict[str, Any] | None
    quarantined: list[dict[str, str]]
    seconds: dict[str, float]
    view: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEffect:
    id: int
    job_id: str
    attempt: int
    effect: Effect
    tries: int
    not_before: float


def new_job_id(name: str) -> str:
    """`quickstart-k3f9x2`: readable, and unique beyond one store, because objects and MLflow runs carry it too."""
    return f"{name}-{''.join(secrets.choice(_ID_ALPHABET) for _ in range(6))}"


class Store:
    """One database. Raises RetryableError while it does not answer."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)

    def migrate(self) -> None:
        """Bring the schema up to date if it is not."""
        if not migrate.is_current(self.engine):
            migrate.upgrade(self.engine)

    @property
    def exists(self) -> bool:
        """Is there a schema of ours? (SQLite would create an empty file on connecting: the file is looked at first.)"""
        if self.engine.url.get_backend_name() == "sqlite":
            from pathlib import Path

            if not Path(str(self.engine.url.database)).exists():
                return False
        return migrate.is_current(self.engine)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise RetryableError(f"the job store did not take a write: {error.orig}") from error

    def _read(self, query: Select[Any]) -> list[Mapping[str, Any]]:
        try:
            with self.engine.connect().execution_options(rex_read_only=True) as connection:
                return [dict(row) for row in connection.execute(query).mappings()]
        except OperationalError as error:
            raise RetryableError(f"the job store did not answer: {error.orig}") from error

    # -- jobs

    def submit(
        self,
        job_id: str,
        spec: JobSpec,
        *,
        store_uri: str,
        init_from: dict[str, Any] | None,
        now: float,
        commit_protocol: str = "create-only",
    ) -> None:
        """Insert a queued job."""
        with self._write() as connection:
            connection.execute(
                insert(jobs).values(
                    id=job_id,
                    spec=spec.model_dump(mode="json"),
                    name=spec.name,
                    priority=spec.priority,
                    submitted_at=now,
                    version=0,
                    waiting="not looked at yet",
                    metrics={},
                    store_uri=store_uri,
                    commit_protocol=commit_protocol,
                    init_from=init_from,
                    **_job_values(Job(id=job_id, retry=spec.retry)),
                )
            )
            _log(connection, job_id, 0, now, "submitted", State.QUEUED, {"priority": spec.priority})

    def get(self, job_id: str) -> JobRow:
        """One job by its id or by an unambiguous beginning of it; NotFoundError otherwise."""
        rows = self._read(select(jobs).where(jobs.c.id.startswith(job_id, autoescape=True)))
        exact = [row for row in rows if row["id"] == job_id]
        if len(exact or rows) != 1:
            seen = f"{len(rows)} jobs begin like that" if rows else "there is no such job"
            raise NotFoundError(f"job {job_id!r}: {seen}", hint="`rexctl ls` lists the jobs")
        return _job_row((exact or rows)[0])

    def jobs(self, *, active: bool | None = None) -> list[JobRow]:
        """All jobs, newest first; with `active` only those that hold, or do not hold, a gang."""
        query = select(jobs).order_by(jobs.c.submitted_at.desc(), jobs.c.id)
        if active is not None:
            states = [state.value for state in State if state.active == active and not state.final]
            query = query.where(jobs.c.state.in_(states))
        return [row for row in map(_readable_job_row, self._read(query)) if row is not None]

    def apply(
        self,
        row: JobRow,
        happened: Event,
        *,
        now: float,
        action: str,
        detail: Mapping[str, Any] | None = None,
        nodes: list[dict[str, str]] | None = None,
    ) -> JobRow:
        """Commit `transition(row.job, happened)`: state, event, attempt row and pending effects in one transaction.

        `nodes` goes with GangGranted: where the new attempt runs. Stale if the row changed since it was read.
        """
        job, todo = transition(row.job, happened, now=now)
        if job == row.job and not todo:
            return row
        with self._write() as connection:
            values = _job_values(job)
            if job.state.final:
                values["finished_at"] = now
            elif row.job.state.final:
                values["finished_at"] = None
            done = connection.execute(
                update(jobs)
                .where(jobs.c.id == row.id, jobs.c.version == row.version)
                .values(version=row.version + 1, **values)
            )
            if done.rowcount != 1:
                raise Stale(f"job {row.id} changed meanwhile")
            _record_attempt(connection, job, happened, now, nodes)
            _log(connection, row.id, job.attempt, now, action, job.state, dict(detail or {}))
            for effect in todo:
                connection.execute(
                    insert(effects).values(
                        job_id=row.id,
                        attempt=job.attempt,
                        effect=effect.value,
                        created_at=now,
                        tries=0,
                        not_before=0.0,
                        error="",
                    )
                )
        return self.get(row.id)

    def request(self, job_id: str, happened: Event, *, action: str, detail: Mapping[str, Any] | None = None) -> JobRow:
        """A user's wish: as `apply`, on the newest row, again if somebody else was faster."""
        while True:
            try:
                return self.apply(self.get(job_id), happened, now=time.time(), action=action, detail=detail)
            except Stale:
                continue

    def note(self, job_id: str, **values: Any) -> None:
        """Set what is known besides the rules' part (checkpoint, metrics, waiting, mlflow_run, ...)."""
        with self._write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))

    # -- attempts, events

    def attempts(self, job_id: str) -> list[AttemptRow]:
        """All attempts of a job, oldest first."""
        query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
        return [AttemptRow(**row) for row in self._read(query)]

    def attempt(self, job_id: str, number: int) -> AttemptRow:
        for row in self.attempts(job_id):
            if row.number == number:
                return row
        raise NotFoundError(f"job {job_id} has no attempt {number}", hint=f"`rexctl status {job_id}` lists them")

    def note_attempt(self, job_id: str, number: int, **values: Any) -> None:
        with self._write() as connection:
            connection.execute(
                update(attempts).where(attempts.c.job_id == job_id, attempts.c.number == number).values(**values)
            )

    def log(self, row: JobRow, action: str, detail: Mapping[str, Any]) -> None:
        """An event that moves no state."""
        with self._write() as connection:
            _log(connection, row.id, row.job.attempt, time.time(), action, row.state, dict(detail))

    def events(self, job_id: str | None = None, *, after: int = 0) -> list[Mapping[str, Any]]:
        query = select(events).where(events.c.id > after).order_by(events.c.id)
        return self._read(query.where(events.c.job_id == job_id) if job_id else query)

    # -- effects

    def pending_effects(self, job_id: str | None = None) -> list[PendingEffect]:
        """What is still to be done, oldest first."""
        query = select(effects).where(effects.c.done_at.is_(None)).order_by(effects.c.id)
        rows = self._read(query.where(effects.c.job_id == job_id) if job_id else query)
        return [
            PendingEffect(
                id=row["id"],
                job_id=row["job_id"],
                attempt=row["attempt"],
                effect=Effect(row["effect"]),
                tries=row["tries"],
                not_before=row["not_before"],
            )
            for row in rows
        ]

    def effect_done(self, effect: PendingEffect, *, error: str = "") -> None:
        with self._write() as connection:
            connection.execute(
                update(effects).where(effects.c.id == effect.id).values(done_at=time.time(), error=error)
            )

    def effect_done_at(self, job_id: str, attempt: int, effect: Effect) -> float | None:
        """When that effect was carried out; None while it is pending, or if there is none."""
        mine = (effects.c.job_id == job_id, effects.c.attempt == attempt, effects.c.effect == effect.value)
        rows = self._read(select(effects.c.done_at).where(*mine))
        return rows[0]["done_at"] if rows else None

    def effect_failed(self, effect: PendingEffect, error: str, *, retry_at: float) -> None:
        with self._write() as connection:
            connection.execute(
                update(effects)
                .where(effects.c.id == effect.id)
                .values(tries=effect.tries + 1, error=error, not_before=retry_at)
            )

    # -- cluster and flags

    def see_nodes(self, seen: list[dict[str, Any]], *, now: float) -> None:
        """Note what the cluster is; `lost_since` is kept from the first time a node was seen dead or not seen. What its
        preflight saw is kept, too.

        A node that has vanished altogether (its Ray head was started anew) is kept as lost for an hour: attempts that
        ran on it have to be told from when on.
        """
        with self._write() as connection:
            known = {row["id"]: dict(row) for row in connection.execute(select(nodes)).mappings()}
            present = {node["id"] for node in seen}
            vanished = [
                {**row, "alive": False, "lost_since": row["lost_since"] or now}
                for row in known.values()
                if row["id"] not in present and now - (row["lost_since"] or now) < _FORGET_NODE_S
            ]
            connection.execute(nodes.delete())
            for node in seen:
                before = known.get(node["id"], {})
                lost = None if node["alive"] else (before.get("lost_since") or now)
                preflight = {name: before[name] for name in _PREFLIGHT if name in before}
                connection.execute(insert(nodes).values(**node, lost_since=lost, seen_at=now, **preflight))
            for row in vanished:
                connection.execute(insert(nodes).values(**row))

    def note_node(self, node_id: str, **values: Any) -> None:
        """Set what a node's preflight saw."""
        with self._write() as connection:
            connection.execute(update(nodes).where(nodes.c.id == node_id).values(**values))

    def nodes(self) -> list[Mapping[str, Any]]:
        return self._read(select(nodes).order_by(nodes.c.host))

    def flag(self, name: str) -> Any:
        rows = self._read(select(flags).where(flags.c.name == name))
        return rows[0]["value"] if rows else None

    def set_flag(self, name: str, value: Any) -> None:
        with self._write() as connection:
            connection.execute(flags.delete().where(flags.c.name == name))
            connection.execute(insert(flags).values(name=name, value=value))


def _record_attempt(
    connection: Connection, job: Job, happened: Event, now: float, where: list[dict[str, str]] | None
) -> None:
    """What a transition says about its attempt's row."""
    if isinstance(happened, GangGranted):
        connection.execute(
            insert(attempts).values(
                job_id=job.id,
                number=job.attempt,
                token=secrets.token_hex(12),
                nodes=where or [],
                granted_at=now,
                detail="",
                to_step=0,
                quarantined=[],
                seconds={},
                view={},
            )
        )
        return
    mine = update(attempts).where(attempts.c.job_id == job.id, attempts.c.number == job.attempt)
    if isinstance(happened, AttemptEnded):
        connection.execute(mine.values(ended_at=now, cause=happened.cause.value, detail=happened.detail))
    elif isinstance(happened, StopRequested) and job.stop_for is not None:
        connection.execute(mine.where(attempts.c.stop_at.is_(None)).values(stop_at=now))


def _log(  # noqa: PLR0917 - the columns, in their order
    connection: Connection, job_id: str, attempt: int, at: float, action: str, state: State, detail: dict[str, Any]
) -> None:
    connection.execute(
        insert(events).values(job_id=job_id, attempt=attempt, at=at, action=action, state=state.value, detail=detail)
    )


def _job_values(job: Job) -> dict[str, Any]:
    return {
        "state": job.state.value,
        "attempt": job.attempt,
        "stop_for": job.stop_for.value if job.stop_for else None,
        "spent": {cause.value: count for cause, count in job.spent.items()},
        "failures_in_row": job.failures_in_row,
        "stalled_in_row": job.stalled_in_row,
        "not_before": job.not_before,
        "cause": job.cause.value if job.cause else None,
        "detail": job.detail,
    }


def _job_row(row: Mapping[str, Any]) -> JobRow:
    spec = build_spec(row["spec"], f"job {row['id']} in the store")
    job = Job(
        id=row["id"],
        state=State(row["state"]),
        attempt=row["attempt"],
        retry=spec.retry,
        stop_for=Cause(row["stop_for"]) if row["stop_for"] else None,
        spent={Cause(cause): count for cause, count in row["spent"].items()},
        failures_in_row=row["failures_in_row"],
        stalled_in_row=row["stalled_in_row"],
        not_before=row["not_before"],
        cause=Cause(row["cause"]) if row["cause"] else None,
        detail=row["detail"],
    )
    return JobRow(
        job=job,
        spec=spec,
        version=row["version"],
        submitted_at=row["submitted_at"],
        finished_at=row["finished_at"],
        waiting=row["waiting"],
        checkpoint=row["checkpoint"],
        metrics=row["metrics"],
        init_from=row["init_from"],
        store_uri=row["store_uri"],
        mlflow_run=row["mlflow_run"],
        unreachable_since=row["unreachable_since"],
        commit_protocol=row["commit_protocol"],
    )


def _readable_job_row(row: Mapping[str, Any]) -> JobRow | None:
    """One job that another version of this code wrote must not hide all the others."""
    try:
        return _job_row(row)
    except SpecError as error:
        _LOG.error("action=skip_job job=%s: %s", row["id"], error)
        return None


def _engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
    return engine


def _sqlite_connect(connection: Any, record: Any) -> None:
    """WAL, full durability, patience with other writers; transactions begin where we say, not where sqlite3 guesses."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=20000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    # Taking the write lock at once avoids the deadlock of two readers that both want to write; mere readers see the
    # last commit and hold nobody up.
    read_only = connection.get_execution_options().get("rex_read_only")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
