"""What the list marks at a session, and the indexes for its filters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from airflow_mediation_provider.protocol.status import SessionStatus

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_SESSION = "mediation_session"
_ENDED = "ix_mediation_session_best_ended_begun_at"
_MARKS = "ix_mediation_session_best_marks_begun_at"


def upgrade() -> None:
    """Add the column, with the marks of the stored sessions, and the indexes."""
    op.add_column(_SESSION, sa.Column("best_marks", sa.String(64), server_default="", nullable=False))
    table = sa.table(
        _SESSION,
        *(sa.column(each, sa.Boolean) for each in ("ambiguous", "conflict", "best_differs", "best_certain")),
        *(sa.column(each, sa.String) for each in ("best_status", "best_evidence", "best_marks")),
    )
    row = table.c
    by_poll = row.best_evidence == "poll"
    marks = {
        "ambiguous": sa.and_(row.ambiguous, sa.not_(by_poll)),
        "conflict": sa.or_(row.conflict, row.best_differs),
        "uncertain": sa.and_(by_poll, sa.not_(row.best_certain)),
        "unknown": row.best_status.not_in([str(each) for each in SessionStatus]),
    }
    names = [sa.case((holds, f"{name} "), else_="") for name, holds in marks.items()]
    together = sa.func.trim(names[0] + names[1] + names[2] + names[3])
    op.execute(sa.update(table).where(sa.or_(*marks.values())).values(best_marks=together))
    op.create_index(_ENDED, _SESSION, ["best_ended", "begun_at"])
    op.create_index(_MARKS, _SESSION, ["best_marks", "begun_at"])


def downgrade() -> None:
    """Remove them: other columns determine the marks."""
    op.drop_index(_MARKS, _SESSION)
    op.drop_index(_ENDED, _SESSION)
    op.drop_column(_SESSION, "best_marks")
