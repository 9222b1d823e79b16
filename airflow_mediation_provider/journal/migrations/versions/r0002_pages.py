"""For the pages in Airflow's UI: an index for each list of sessions, and the counts of calls to Zuora."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from airflow_mediation_provider.journal.migrations import TIME, name

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LISTED_BY = ("conn_id", "meter_id", "status", "run_type")


def upgrade() -> None:
    """Create the table and the indexes."""
    for column in LISTED_BY:
        op.create_index(f"ix_mediation_session_{column}_begun_at", "mediation_session", [column, "begun_at"])
    op.create_table(
        "mediation_calls",
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("hour", TIME, nullable=False),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("limited", sa.Integer, nullable=False),
        sa.Column("limits", sa.String(250), nullable=True),
        sa.Column("remaining", sa.BigInteger, nullable=True),
        sa.Column("reset_at", TIME, nullable=True),
        sa.Column("told_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("conn_id", "hour", name="pk_mediation_calls"),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("mediation_calls")
    for column in LISTED_BY:
        op.drop_index(f"ix_mediation_session_{column}_begun_at", "mediation_session")
