"""The first three tables: transitions, sessions, waits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from airflow_mediation_provider.journal.migrations import NUMBER, TIME, name

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "mediation_transition",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("notification_id", name(190), nullable=True),
        sa.Column("meter_id", name(64), nullable=True),
        sa.Column("meter_name", sa.Text, nullable=True),
        sa.Column("session_id", name(64), nullable=True),
        sa.Column("run_type", sa.String(16), nullable=True),
        sa.Column("status", sa.String(64), nullable=True),
        sa.Column("previous_status", sa.String(64), nullable=True),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("observed_at", TIME, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mediation_transition"),
        sa.UniqueConstraint("conn_id", "notification_id", name="uq_mediation_transition_conn_id_notification_id"),
        sa.Index("ix_mediation_transition_session", "conn_id", "meter_id", "session_id"),
        sa.Index("ix_mediation_transition_kind", "conn_id", "kind", "created_at"),
        sa.Index("ix_mediation_transition_created_at", "created_at"),
    )
    op.create_table(
        "mediation_session",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("meter_id", name(64), nullable=False),
        sa.Column("session_id", name(64), nullable=False),
        sa.Column("meter_name", sa.Text, nullable=True),
        sa.Column("run_type", sa.String(16), nullable=False),
        sa.Column("status", sa.String(64), nullable=False),
        sa.Column("previous_status", sa.String(64), nullable=True),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("begun_at", TIME, nullable=False),
        sa.Column("first_observed_at", TIME, nullable=False),
        sa.Column("last_observed_at", TIME, nullable=False),
        sa.Column("conflict", sa.Boolean, nullable=False),
        sa.Column("ambiguous", sa.Boolean, nullable=False),
        sa.Column("terminal", sa.Boolean, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("transition", sa.JSON, nullable=False),
        sa.Column("emitted", sa.JSON, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mediation_session"),
        sa.UniqueConstraint(
            "conn_id", "meter_id", "session_id", name="uq_mediation_session_conn_id_meter_id_session_id"
        ),
        sa.Index("ix_mediation_session_updated_at", "updated_at"),
        sa.Index("ix_mediation_session_meter", "conn_id", "meter_id", "begun_at", "session_id"),
        sa.Index("ix_mediation_session_live", "conn_id", "meter_id", "terminal", "begun_at"),
        sa.Index("ix_mediation_session_terminal", "terminal", "last_observed_at"),
        sa.Index("ix_mediation_session_begun_at", "begun_at"),
    )
    op.create_table(
        "mediation_wait",
        sa.Column("id", name(64), nullable=False),
        sa.Column("conn_id", name(250), nullable=False),
        sa.Column("meter_id", name(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("session_id", name(64), nullable=True),
        sa.Column("condition", sa.JSON, nullable=False),
        sa.Column("dag_id", name(250), nullable=False),
        sa.Column("run_id", name(250), nullable=False),
        sa.Column("task_id", name(250), nullable=False),
        sa.Column("map_index", sa.Integer, nullable=False),
        sa.Column("try_number", sa.Integer, nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("until", TIME, nullable=True),
        sa.Column("seen_at", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_mediation_wait"),
        sa.Index("ix_mediation_wait_ended_at", "ended_at", "seen_at"),
        sa.Index("ix_mediation_wait_session", "conn_id", "meter_id", "session_id"),
        sa.Index("ix_mediation_wait_task", "dag_id", "run_id", "task_id"),
    )


def downgrade() -> None:
    """Remove the tables with all their rows."""
    for table in ("mediation_wait", "mediation_session", "mediation_transition"):
        op.drop_table(table)
