"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("submitted_at", sa.Float, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("stop_for", sa.String(32)),
        sa.Column("spent", sa.JSON, nullable=False),
        sa.Column("failures_in_row", sa.Integer, nullable=False),
        sa.Column("stalled_in_row", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float),
        sa.Column("cause", sa.String(32)),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("finished_at", sa.Float),
        sa.Column("waiting", sa.Text, nullable=False),
        sa.Column("checkpoint", sa.JSON),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("init_from", sa.JSON),
        sa.Column("store_uri", sa.Text, nullable=False),
        sa.Column("mlflow_run", sa.String(64)),
        sa.Column("unreachable_since", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", name="fk_attempts_job_id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("nodes", sa.JSON, nullable=False),
        sa.Column("plan", sa.JSON),
        sa.Column("granted_at", sa.Float, nullable=False),
        sa.Column("ready_at", sa.Float),
        sa.Column("first_step_at", sa.Float),
        sa.Column("stop_at", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("cause", sa.String(32)),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("from_step", sa.Integer),
        sa.Column("to_step", sa.Integer, nullable=False),
        sa.Column("resumed", sa.JSON),
        sa.Column("quarantined", sa.JSON, nullable=False),
        sa.Column("seconds", sa.JSON, nullable=False),
        sa.Column("view", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_attempts"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=True),
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", name="fk_events_job_id"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("action", sa.String(48), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_job_id_id", "events", ["job_id", "id"])
    op.create_table(
        "effects",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=True),
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", name="fk_effects_job_id"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("effect", sa.String(32), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("done_at", sa.Float),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_effects"),
    )
    op.create_index("ix_effects_done_at", "effects", ["done_at"])
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("cpus", sa.Float, nullable=False),
        sa.Column("npus", sa.Float, nullable=False),
        sa.Column("alive", sa.Boolean, nullable=False),
        sa.Column("lost_since", sa.Float),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nodes"),
    )
    op.create_table(
        "flags",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_flags"),
    )
