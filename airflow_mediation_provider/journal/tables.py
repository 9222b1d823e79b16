"""The journal's tables: what was told (transition), what follows (session), who waits (wait), what it cost (calls).

They live in Airflow's metadata database with a metadata and an Alembic version of their own. Types and indexes are such
that SQLite, PostgreSQL and MySQL all take them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from airflow.utils.sqlalchemy import UtcDateTime
from sqlalchemy import JSON, BigInteger, Boolean, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

VERSION_TABLE: Final = "mediation_alembic_version"
# SQLite numbers rows by itself only where the type is INTEGER.
_Number = BigInteger().with_variant(Integer, "sqlite")


def _name(length: int) -> String:
    """Return the type of what names something: MySQL would take ``a`` for ``A``."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )


class Base(DeclarativeBase):
    """Base of the journal's tables; their metadata is not Airflow's."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON}  # noqa: RUF012  # SQLAlchemy reads it so


class TransitionRow(Base):
    """One thing as it was told: a change of a status, a poll, a sibling event, or what nobody can read."""

    __tablename__ = "mediation_transition"

    id: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=True)
    conn_id: Mapped[str] = mapped_column(_name(250))
    kind: Mapped[str] = mapped_column(String(24))
    notification_id: Mapped[str | None] = mapped_column(_name(190))
    meter_id: Mapped[str | None] = mapped_column(_name(64))
    meter_name: Mapped[str | None] = mapped_column(Text)
    session_id: Mapped[str | None] = mapped_column(_name(64))
    run_type: Mapped[str | None] = mapped_column(String(16))
    status: Mapped[str | None] = mapped_column(String(64))
    previous_status: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    observed_at: Mapped[datetime]
    source: Mapped[str] = mapped_column(String(16))
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("conn_id", "notification_id"),
        Index("ix_mediation_transition_session", "conn_id", "meter_id", "session_id"),
        Index("ix_mediation_transition_kind", "conn_id", "kind", "created_at"),
        Index("ix_mediation_transition_created_at", "created_at"),
    )


class SessionRow(Base):
    """One session as the fold of its changes; written whenever one of them is."""

    __tablename__ = "mediation_session"

    id: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=True)
    conn_id: Mapped[str] = mapped_column(_name(250))
    meter_id: Mapped[str] = mapped_column(_name(64))
    session_id: Mapped[str] = mapped_column(_name(64))
    meter_name: Mapped[str | None] = mapped_column(Text)
    run_type: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(64))
    previous_status: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    begun_at: Mapped[datetime]
    first_observed_at: Mapped[datetime]
    last_observed_at: Mapped[datetime]
    conflict: Mapped[bool] = mapped_column(Boolean)
    ambiguous: Mapped[bool] = mapped_column(Boolean)
    terminal: Mapped[bool] = mapped_column(Boolean)
    source: Mapped[str] = mapped_column(String(16))
    transition: Mapped[dict[str, Any]]
    emitted: Mapped[dict[str, Any]]
    revision: Mapped[int] = mapped_column(Integer)
    updated_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("conn_id", "meter_id", "session_id"),
        Index("ix_mediation_session_updated_at", "updated_at"),
        Index("ix_mediation_session_meter", "conn_id", "meter_id", "begun_at", "session_id"),
        Index("ix_mediation_session_live", "conn_id", "meter_id", "terminal", "begun_at"),
        Index("ix_mediation_session_terminal", "terminal", "last_observed_at"),
        Index("ix_mediation_session_begun_at", "begun_at"),
        # The pages list the newest sessions first, all of them or those that one of these names.
        Index("ix_mediation_session_conn_id_begun_at", "conn_id", "begun_at"),
        Index("ix_mediation_session_meter_id_begun_at", "meter_id", "begun_at"),
        Index("ix_mediation_session_status_begun_at", "status", "begun_at"),
        Index("ix_mediation_session_run_type_begun_at", "run_type", "begun_at"),
    )


class WaitRow(Base):
    """One task's wait for a session, as its process last reported it."""

    __tablename__ = "mediation_wait"

    id: Mapped[str] = mapped_column(_name(64), primary_key=True)
    conn_id: Mapped[str] = mapped_column(_name(250))
    meter_id: Mapped[str] = mapped_column(_name(64))
    version: Mapped[str] = mapped_column(String(64))
    session_id: Mapped[str | None] = mapped_column(_name(64))
    condition: Mapped[dict[str, Any]]
    dag_id: Mapped[str] = mapped_column(_name(250))
    run_id: Mapped[str] = mapped_column(_name(250))
    task_id: Mapped[str] = mapped_column(_name(250))
    map_index: Mapped[int] = mapped_column(Integer)
    try_number: Mapped[int] = mapped_column(Integer)
    mode: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    until: Mapped[datetime | None]
    seen_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(16))

    __table_args__ = (
        Index("ix_mediation_wait_ended_at", "ended_at", "seen_at"),
        Index("ix_mediation_wait_session", "conn_id", "meter_id", "session_id"),
        # MySQL allows 3,072 bytes for an index: three of these texts and no more.
        Index("ix_mediation_wait_task", "dag_id", "run_id", "task_id"),
    )


class CallsRow(Base):
    """What was asked of Zuora over one connection within one hour, and what Zuora said last of what is left."""

    __tablename__ = "mediation_calls"

    conn_id: Mapped[str] = mapped_column(_name(250), primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    calls: Mapped[int] = mapped_column(Integer)
    limited: Mapped[int] = mapped_column(Integer)
    limits: Mapped[str | None] = mapped_column(String(250))
    remaining: Mapped[int | None] = mapped_column(BigInteger)
    reset_at: Mapped[datetime | None]
    told_at: Mapped[datetime | None]
