"""The tables. Times are Unix seconds; JSON columns hold plain values; secrets are in none of them."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("spec", JSON, nullable=False),
    Column("name", String(64), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("submitted_at", Float, nullable=False),
    Column("version", Integer, nullable=False),  # grows with every transition: compare-and-set
    # what jobs.states.Job holds
    Column("state", String(16), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("stop_for", String(32)),
    Column("spent", JSON, nullable=False),
    Column("failures_in_row", Integer, nullable=False),
    Column("stalled_in_row", Integer, nullable=False),
    Column("not_before", Float),
    Column("cause", String(32)),
    Column("detail", Text, nullable=False),
    # what is known besides
    Column("finished_at", Float),
    Column("waiting", Text, nullable=False),  # why it is queued, in words
    Column("checkpoint", JSON),  # newest commit: {"manifest", "step", "sha256"}
    Column("metrics", JSON, nullable=False),  # newest validation
    Column("init_from", JSON),  # resolved: {"store", "manifest", "sha256"}
    Column("store_uri", Text, nullable=False),
    Column("commit_protocol", String(16), nullable=False, server_default="create-only"),  # what is safe on that store
    Column("mlflow_run", String(64)),
    Column("unreachable_since", Float),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("token", String(64), nullable=False),
    Column("nodes", JSON, nullable=False),  # [{"id", "host", "address"}], by node rank
    Column("plan", JSON),  # cluster.launch.LaunchPlan
    Column("granted_at", Float, nullable=False),
    Column("ready_at", Float),  # every supervisor has started msrun
    Column("first_step_at", Float),
    Column("stop_at", Float),  # a stop was asked for
    Column("ended_at", Float),
    Column("cause", String(32)),
    Column("detail", Text, nullable=False),
    Column("from_step", Integer),
    Column("to_step", Integer, nullable=False),
    Column("resumed", JSON),  # {"manifest", "step"}
    Column("quarantined", JSON, nullable=False),  # [{"manifest", "reason"}]
    Column("seconds", JSON, nullable=False),  # rank 0's own account
    Column("view", JSON, nullable=False),  # newest word of every node and rank
    PrimaryKeyConstraint("job_id", "number"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("action", String(48), nullable=False),  # a slug
    Column("state", String(16), nullable=False),  # after it
    Column("detail", JSON, nullable=False),
    Index("ix_events_job_id_id", "job_id", "id"),
)

effects = Table(
    "effects",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("effect", String(32), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("done_at", Float, index=True),
    Column("tries", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("error", Text, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("address", String(64), nullable=False),
    Column("cpus", Float, nullable=False),
    Column("npus", Float, nullable=False),
    Column("alive", Boolean, nullable=False),
    Column("lost_since", Float),
    Column("seen_at", Float, nullable=False),
    # what its preflight saw; all of it None or empty before the first
    Column("incarnation", String(128)),  # see cluster.preflight.facts.incarnation
    Column("preflight", JSON),  # see control.fitness.record; "unanswered" if the newest question found no answer
    Column("problem", Text, nullable=False, server_default=""),  # why it is left out, in one sentence
)

flags = Table(
    "flags",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", JSON, nullable=False),
)
