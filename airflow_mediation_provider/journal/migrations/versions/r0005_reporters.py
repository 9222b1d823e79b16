"""One row for all waits that a triggerer reports, and the index for the first sessions of each run type.

A wait of an older version has no reporter: the time of its own last report counts.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from airflow_mediation_provider.journal.migrations import TIME, name

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_REPORTER = "mediation_reporter"
_SESSION = "mediation_session"
_WAIT = "mediation_wait"
_FIRST = "ix_mediation_session_first"


def upgrade() -> None:
    """Create the table, the column and the index."""
    op.create_table(
        _REPORTER,
        sa.Column("id", name(64), nullable=False),
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("seen_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mediation_reporter"),
    )
    op.add_column(_WAIT, sa.Column("reporter", name(64), nullable=True))
    op.create_index(_FIRST, _SESSION, ["conn_id", "meter_id", "run_type", "begun_at", "session_id"])


def downgrade() -> None:
    """Remove them: a wait counts as not reported until its process reports it again."""
    op.drop_index(_FIRST, _SESSION)
    op.drop_column(_WAIT, "reporter")
    op.drop_table(_REPORTER)
