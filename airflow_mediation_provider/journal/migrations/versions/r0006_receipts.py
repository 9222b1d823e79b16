"""What the receiver of callouts saw: a receipt of each callout, and how many got which answer in each hour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from airflow_mediation_provider.journal.migrations import NUMBER, TIME, name

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_RECEIPT = "mediation_receipt"
_ANSWERS = "mediation_answers"
_INDEXES = {
    "ix_mediation_receipt_received_at": ["received_at"],
    "ix_mediation_receipt_conn_id_received_at": ["conn_id", "received_at"],
    "ix_mediation_receipt_accepted": ["conn_id", "accepted", "received_at"],
    "ix_mediation_receipt_conn_id_notification_id": ["conn_id", "notification_id"],
}


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        _RECEIPT,
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("accepted", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("milliseconds", sa.Integer, nullable=False),
        sa.Column("proof", sa.String(16), nullable=False),
        sa.Column("notification_id", name(190), nullable=True),
        sa.Column("transition_id", NUMBER, nullable=True),
        sa.Column("headers", sa.JSON, nullable=False),
        sa.Column("query", sa.JSON, nullable=False),
        sa.Column("body_size", sa.Integer, nullable=True),
        sa.Column("body", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_mediation_receipt"),
    )
    for index, columns in _INDEXES.items():
        op.create_index(index, _RECEIPT, columns)
    op.create_table(
        _ANSWERS,
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("hour", TIME, nullable=False),
        sa.Column("status", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("answers", sa.Integer, nullable=False),
        sa.Column("since_accepted", sa.Integer, nullable=False),
        sa.Column("without_receipt", sa.Integer, nullable=False),
        sa.Column("last_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("conn_id", "hour", "status", name="pk_mediation_answers"),
    )


def downgrade() -> None:
    """Remove them: the sessions do not depend on them."""
    op.drop_table(_ANSWERS)
    op.drop_table(_RECEIPT)
