"""Each job remembers the commit protocol that the store doctor chose for its store."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Jobs from before were written create-only: there was nothing else.
    column = sa.Column("commit_protocol", sa.String(16), nullable=False, server_default="create-only")
    op.add_column("jobs", column)
