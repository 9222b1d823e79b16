"""The journal's tables: reports (transition), their fold (session), what tasks concluded (verdict), tasks (wait), API
usage (calls), the readers of Zuora's callout history (history), what reports waits (reporter), what the receiver of
callouts saw (receipt, answers), and the names of meters (meter).

They are in Airflow's metadata database, with a metadata and an Alembic version of their own. Types and indexes are
limited to those that SQLite, PostgreSQL and MySQL all accept.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from airflow.utils.sqlalchemy import UtcDateTime
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    true,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

VERSION_TABLE: Final = "mediation_alembic_version"
# SQLite numbers rows by itself only if the type is INTEGER.
_Number = BigInteger().with_variant(Integer, "sqlite")


def _name(length: int) -> String:
    """Return the type of an identifier: MySQL would by default treat ``a`` and ``A`` as equal."""
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
    """One report as it was received: a change of a status, a poll, a sibling event, or an unparsed callout.

    ``acknowledged_at`` and ``acknowledged_by``: when a user acknowledged an unparsed one, and who.
    """

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
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[str | None] = mapped_column(_name(250))

    __table_args__ = (
        UniqueConstraint("conn_id", "notification_id"),
        Index("ix_mediation_transition_session", "conn_id", "meter_id", "session_id"),
        Index("ix_mediation_transition_kind", "conn_id", "kind", "created_at"),
        Index("ix_mediation_transition_created_at", "created_at"),
    )


class ListedRow(Base):
    """One session as lists and pages show it, with its best known status; written with its reports and its verdicts.

    A session that Zuora did not report has a row too, if a task concluded its end from polls. The columns for Zuora's
    reports mean nothing in such a row: ``SessionRow`` leaves it out.

    ``meter_name``: the one that the last report has, if any; pages show that of ``MeterRow``.

    ``reported``: whether Zuora reported the session. The ``best_`` columns are the result of ``best_known``;
    ``best_differs`` is whether a task concluded another end, and ``best_marks`` are names of a ``Mark`` in alphabetical
    order. Their defaults are for rows that an API server of an older version inserts during an upgrade.
    """

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
    reported: Mapped[bool] = mapped_column(Boolean, server_default=true())
    best_status: Mapped[str] = mapped_column(String(64), server_default="UNKNOWN")
    best_evidence: Mapped[str] = mapped_column(String(16), server_default="unknown")
    best_certain: Mapped[bool] = mapped_column(Boolean, server_default=false())
    best_ended: Mapped[bool] = mapped_column(Boolean, server_default=false())
    best_ended_at: Mapped[datetime | None]
    best_differs: Mapped[bool] = mapped_column(Boolean, server_default=false())
    best_marks: Mapped[str] = mapped_column(String(64), server_default="")

    __mapper_args__ = {"polymorphic_on": "reported", "polymorphic_identity": False}  # noqa: RUF012  # SQLAlchemy reads it so
    __table_args__ = (
        UniqueConstraint("conn_id", "meter_id", "session_id"),
        Index("ix_mediation_session_updated_at", "updated_at"),
        Index("ix_mediation_session_meter", "conn_id", "meter_id", "begun_at", "session_id"),
        # The first sessions of one run type since an instant: of tests there may be few, or none.
        Index("ix_mediation_session_first", "conn_id", "meter_id", "run_type", "begun_at", "session_id"),
        Index("ix_mediation_session_live", "conn_id", "meter_id", "terminal", "begun_at"),
        # Sessions first received inside the window of a wait.
        Index("ix_mediation_session_received", "conn_id", "meter_id", "first_observed_at"),
        # A session by its id, for any meter.
        Index("ix_mediation_session_named", "conn_id", "session_id"),
        # Sessions without a reported end: without callouts, all of a connection.
        Index("ix_mediation_session_silent", "conn_id", "terminal", "last_observed_at"),
        Index("ix_mediation_session_ended", "best_ended", "last_observed_at"),
        Index("ix_mediation_session_begun_at", "begun_at"),
        # The pages list the newest sessions first, all of them or those that one of these names.
        Index("ix_mediation_session_conn_id_begun_at", "conn_id", "begun_at"),
        Index("ix_mediation_session_meter_id_begun_at", "meter_id", "begun_at"),
        Index("ix_mediation_session_best_status_begun_at", "best_status", "begun_at"),
        Index("ix_mediation_session_best_ended_begun_at", "best_ended", "begun_at"),
        Index("ix_mediation_session_best_marks_begun_at", "best_marks", "begun_at"),
        Index("ix_mediation_session_run_type_begun_at", "run_type", "begun_at"),
    )


class SessionRow(ListedRow):
    """One session that Zuora reported, as the fold of its changes.

    Code that decides about Dag runs, waits, stops, reconcile and alarms reads this class: SQLAlchemy adds the condition
    ``reported`` to each of its statements, so it never sees what only a task concluded.
    """

    __mapper_args__ = {"polymorphic_identity": True}  # noqa: RUF012  # SQLAlchemy reads it so


class VerdictRow(Base):
    """The end of a session as one try of a task concluded it from polls; the first report of a try is kept.

    ``wait_id`` is the id of the task's wait, with which a verdict without a session is shown. If the verdict was made
    from an ended wait of an older version, ``ti_id`` is that id too.
    """

    __tablename__ = "mediation_verdict"

    ti_id: Mapped[str] = mapped_column(_name(64), primary_key=True)
    conn_id: Mapped[str] = mapped_column(_name(250))
    meter_id: Mapped[str] = mapped_column(_name(64))
    session_id: Mapped[str | None] = mapped_column(_name(64))
    wait_id: Mapped[str] = mapped_column(_name(64))
    run_type: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
    certain: Mapped[bool] = mapped_column(Boolean)
    dag_id: Mapped[str] = mapped_column(_name(250))
    run_id: Mapped[str] = mapped_column(_name(250))
    task_id: Mapped[str] = mapped_column(_name(250))
    map_index: Mapped[int] = mapped_column(Integer)
    try_number: Mapped[int] = mapped_column(Integer)
    mode: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]

    __table_args__ = (
        Index("ix_mediation_verdict_session", "conn_id", "meter_id", "session_id"),
        Index("ix_mediation_verdict_wait", "wait_id"),
    )


class WaitRow(Base):
    """One task's wait for a session as its process last reported it, or what a task did with a session without waiting.

    ``owner`` is the process that started the wait last. ``status``, ``evidence`` and ``certain`` are those on which the
    wait ended. ``note`` is a ``TaskNote``; a task that does not wait has the mode ``task`` and an empty condition.
    ``seen_at`` is when its row was last written; while it has a ``reporter``, that one's row has the time instead.
    """

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
    owner: Mapped[str | None] = mapped_column(_name(64))
    status: Mapped[str | None] = mapped_column(String(64))
    evidence: Mapped[str | None] = mapped_column(String(16))
    certain: Mapped[bool | None] = mapped_column(Boolean)
    note: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    reporter: Mapped[str | None] = mapped_column(_name(64))

    __table_args__ = (
        Index("ix_mediation_wait_ended_at", "ended_at", "seen_at"),
        Index("ix_mediation_wait_session", "conn_id", "meter_id", "session_id"),
        # MySQL allows 3,072 bytes for an index: three of these texts and no more.
        Index("ix_mediation_wait_task", "dag_id", "run_id", "task_id"),
    )


class ReporterRow(Base):
    """What reports many waits: the part of a triggerer that waits over one connection.

    Once a minute it reports that all of its waits go on, and only this row is written.
    """

    __tablename__ = "mediation_reporter"

    id: Mapped[str] = mapped_column(_name(64), primary_key=True)
    conn_id: Mapped[str] = mapped_column(_name(250))
    seen_at: Mapped[datetime]


class CallsRow(Base):
    """The calls made to Zuora over one connection within one hour, and the remaining calls that Zuora returned last."""

    __tablename__ = "mediation_calls"

    conn_id: Mapped[str] = mapped_column(_name(250), primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    calls: Mapped[int] = mapped_column(Integer)
    limited: Mapped[int] = mapped_column(Integer)
    limits: Mapped[str | None] = mapped_column(String(250))
    remaining: Mapped[int | None] = mapped_column(BigInteger)
    reset_at: Mapped[datetime | None]
    told_at: Mapped[datetime | None]


class HistoryRow(Base):
    """The reading of one connection's callout history: up to where, whose turn it is, and what went wrong.

    ``cursor`` is a ``HistoryCursor``, and moves only from the ``revision`` that a reader was given. ``claimed_at`` is
    when a reader last got its turn, ``open`` whether it has not finished; ``seconds`` is between two of its reads.
    ``read_at`` is when a read last came to its end. ``trouble`` is what is wrong since, ``lasting`` whether a user must
    set it right.
    """

    __tablename__ = "mediation_history"

    conn_id: Mapped[str] = mapped_column(_name(250), primary_key=True)
    revision: Mapped[int] = mapped_column(Integer)
    cursor: Mapped[dict[str, Any]]
    seconds: Mapped[float] = mapped_column(Float)
    claimed_at: Mapped[datetime]
    open: Mapped[bool] = mapped_column(Boolean)
    read_at: Mapped[datetime | None]
    trouble: Mapped[str | None] = mapped_column(Text)
    lasting: Mapped[bool] = mapped_column(Boolean)


class ReceiptRow(Base):
    """One callout to a connection that exists, as it was received, and its answer: a ``Receipt``.

    ``transition_id`` is the row that a callout that was answered 200 added; a repeated one added none, and its row has
    the same ``notification_id``. Either row may be pruned. ``acknowledged_at`` and ``acknowledged_by``: when a user
    acknowledged a refused one, and who.
    """

    __tablename__ = "mediation_receipt"

    id: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=True)
    conn_id: Mapped[str] = mapped_column(_name(250))
    received_at: Mapped[datetime]
    method: Mapped[str] = mapped_column(String(16))
    status: Mapped[int] = mapped_column(Integer)
    accepted: Mapped[bool] = mapped_column(Boolean)
    reason: Mapped[str] = mapped_column(Text)
    milliseconds: Mapped[int] = mapped_column(Integer)
    proof: Mapped[str] = mapped_column(String(16))
    notification_id: Mapped[str | None] = mapped_column(_name(190))
    transition_id: Mapped[int | None] = mapped_column(_Number)
    headers: Mapped[dict[str, Any]]
    query: Mapped[dict[str, Any]]
    body_size: Mapped[int | None] = mapped_column(Integer)
    body: Mapped[str | None] = mapped_column(Text)
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[str | None] = mapped_column(_name(250))

    __table_args__ = (
        Index("ix_mediation_receipt_received_at", "received_at"),
        Index("ix_mediation_receipt_conn_id_received_at", "conn_id", "received_at"),
        # The refused ones of a connection: there may be few among many.
        Index("ix_mediation_receipt_accepted", "conn_id", "accepted", "received_at"),
        Index("ix_mediation_receipt_conn_id_notification_id", "conn_id", "notification_id"),
        # That of one row; and those that added none: refused and repeated ones.
        Index("ix_mediation_receipt_conn_id_transition_id_received_at", "conn_id", "transition_id", "received_at"),
    )


class AnswersRow(Base):
    """How many callouts to one connection got one answer within one hour; those to no connection have an empty id.

    ``since_accepted`` of them were refused after the last callout that was accepted, and are not acknowledged;
    ``without_receipt`` of them have no receipt, because there were too many.
    """

    __tablename__ = "mediation_answers"

    conn_id: Mapped[str] = mapped_column(_name(250), primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    status: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    answers: Mapped[int] = mapped_column(Integer)
    since_accepted: Mapped[int] = mapped_column(Integer)
    without_receipt: Mapped[int] = mapped_column(Integer)
    last_at: Mapped[datetime]


class MeterRow(Base):
    """The last known name of a meter, and when the report that has it was received."""

    __tablename__ = "mediation_meter"

    conn_id: Mapped[str] = mapped_column(_name(250), primary_key=True)
    meter_id: Mapped[str] = mapped_column(_name(64), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    received_at: Mapped[datetime]
