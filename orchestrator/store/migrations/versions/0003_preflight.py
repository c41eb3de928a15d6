"""Each node remembers what its preflight saw, and why it is left out if it is."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("incarnation", sa.String(128)))
    op.add_column("nodes", sa.Column("preflight", sa.JSON))
    op.add_column("nodes", sa.Column("problem", sa.Text, nullable=False, server_default=""))
