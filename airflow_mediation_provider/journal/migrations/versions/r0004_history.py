"""The readers of Zuora's callout history: one row for each connection."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from airflow_mediation_provider.journal.migrations import TIME, name

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_HISTORY = "mediation_history"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        _HISTORY,
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("cursor", sa.JSON, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("claimed_at", TIME, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("read_at", TIME, nullable=True),
        sa.Column("trouble", sa.Text, nullable=True),
        sa.Column("lasting", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("conn_id", name="pk_mediation_history"),
    )


def downgrade() -> None:
    """Remove it: a reader begins again from now."""
    op.drop_table(_HISTORY)
