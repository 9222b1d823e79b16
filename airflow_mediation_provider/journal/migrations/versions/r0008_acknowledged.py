"""Unparsed and refused callouts are acknowledged by users, and a receipt is found by the row that its callout added."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from airflow_mediation_provider.journal.migrations import TIME, name

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TABLES = ("mediation_transition", "mediation_receipt")
_INDEX = "ix_mediation_receipt_conn_id_transition_id_received_at"


def upgrade() -> None:
    """Add the columns and the index."""
    for table in _TABLES:
        op.add_column(table, sa.Column("acknowledged_at", TIME, nullable=True))
        op.add_column(table, sa.Column("acknowledged_by", name(250), nullable=True))
    op.create_index(_INDEX, "mediation_receipt", ["conn_id", "transition_id", "received_at"])


def downgrade() -> None:
    """Remove them: every callout counts as not acknowledged."""
    op.drop_index(_INDEX, "mediation_receipt")
    for table in _TABLES:
        op.drop_column(table, "acknowledged_by")
        op.drop_column(table, "acknowledged_at")
