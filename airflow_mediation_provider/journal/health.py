"""Whether callouts arrive and triggerers read the feed, by the journal's rows and Airflow's deferred tasks.

A journal without new rows is no sign of a problem by itself: perhaps no meter runs. So missing callouts are found by
comparison with what Airflow has from run replies and polls.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.utils.state import TaskInstanceState
from sqlalchemy import bindparam, exists, func, or_, select
from sqlalchemy.orm import aliased, lazyload

from airflow_mediation_provider.journal.history import history_row
from airflow_mediation_provider.journal.meters import RunsOfMeter, meters_of
from airflow_mediation_provider.journal.queries import last_callout_at, without_index
from airflow_mediation_provider.journal.tables import ReporterRow, SessionRow, TransitionRow, WaitRow
from airflow_mediation_provider.journal.task_reports import REPORTER_OF_WAIT, SEEN_AT, TASK_OF_WAIT, goes_on
from airflow_mediation_provider.protocol.callouts.cursor import HistoryCursor, is_read
from airflow_mediation_provider.protocol.callouts.setup import ReceivedCallout
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind
from airflow_mediation_provider.protocol.sessions.usual import Punctuality
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, RunType
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.wire import from_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import ColumnElement, ScalarSelect, Select
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.meters import Tempos
    from airflow_mediation_provider.protocol.sessions.usual import Tempo

log = logging.getLogger(__name__)

RECENT: Final = timedelta(days=1)
"""Only problems within this span count."""
LAST_CALLOUT: Final = timedelta(days=7)
OVERDUE: Final = timedelta(minutes=5)
"""The callout of a status that Airflow has from elsewhere should have arrived after this long."""
SILENT: Final = timedelta(hours=6)
"""A running session without a report for this long is shown; ``reconcile`` lists it too."""
UNSEEN: Final = timedelta(minutes=3)
"""A triggerer reports its waits once a minute; one without a report for this long has lost the wait, or the feed."""
MOST: Final = 100
"""Counts end here."""
METERS: Final = 200
"""So many meters of a connection are compared with what is usual."""
UNPARSED: Final = 1000
"""So many of the newest unparsed callouts are searched for those that no user has acknowledged."""
_POLLS: Final = 1000
_UNENDED: Final = 1000
"""The newest sessions without a reported end that are searched for silent ones."""
_NEWEST: Final = 60
"""The newest status changes that are searched for faults of the set-up; a body may have 256 KiB."""
_TRIGGERS: Final = "airflow_mediation_provider.triggers.meter_session."
"""Airflow stores the path of a trigger's class; all those in this module report their waits over the feed."""
# Sources that show that callouts arrived, or that Zuora's history has the change and so it should have been received.
_REPORTED: Final = (Source.CALLOUT, Source.HISTORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionHealth:
    """What the journal shows of one connection; counts end at ``MOST``.

    :param last_callout_at: when the last parsed callout was received; ``None`` if none was for a week
    :param unparsed: unparsed callouts within a day that no user has acknowledged, of the newest ``UNPARSED``
    :param without_callouts: sessions within a day that Airflow started and that had no callout, nor had a later session
        of the meter
    :param ends_without_callouts: meters at which a poll within a day showed an end that no session has
    :param silent: sessions without an end, also by what tasks concluded, of which the last report is hours old
    :param waiting: tasks that wait
    :param unseen: of these, the ones that a triggerer should have reported, and has not for minutes
    :param history: how its callout history is read; ``None`` where it is not
    """

    conn_id: str
    last_callout_at: datetime | None
    unparsed: int
    without_callouts: int
    ends_without_callouts: tuple[str, ...]
    silent: int
    waiting: int
    unseen: int
    history: HistoryHealth | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusual:
    """What is not usual of a connection's meters now.

    :param late: the meters of which the next session is late
    :param long: the meters with a session that goes on for longer than usual
    """

    late: tuple[str, ...]
    long: tuple[str, ...]


def unusual(session: Session, conn_id: str, tempos: Tempos, now: datetime) -> Unusual:
    """Return what is not usual of the first ``METERS`` meters of a connection.

    A session without an update for hours is left out: what ended may be only its reports, and that is counted already.

    :param tempos: what is usual of the meters
    :param now: the time now
    """
    runs = [RunsOfMeter(conn_id, meter_id, RunType.NORMAL) for meter_id in meters_of(session, conn_id, METERS)]
    found = tempos.of(session, runs)
    silent = select(SessionRow.meter_id, SessionRow.session_id).where(
        SessionRow.conn_id == conn_id, SessionRow.terminal.is_(False), SessionRow.last_observed_at < now - SILENT
    )
    left_out = {tuple(row) for row in session.execute(silent.order_by(SessionRow.last_observed_at.desc()).limit(MOST))}

    def is_long(meter_id: str, tempo: Tempo) -> bool:
        going = (each for each in tempo.live if (meter_id, each.session_id) not in left_out)
        return any(tempo.takes_long(each.begun_at, now) for each in going)

    return Unusual(
        late=tuple(of.meter_id for of, tempo in found.items() if tempo.punctuality(now) is Punctuality.LATE),
        long=tuple(of.meter_id for of, tempo in found.items() if is_long(of.meter_id, tempo)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryHealth:
    """How a connection's callout history is read.

    :param cursor: up to where
    :param read_at: when it was last read
    :param seconds: between two reads
    :param is_read: whether it is being read
    :param trouble: what is wrong since the last read; empty: nothing
    :param lasting: whether a user must set that right
    """

    cursor: HistoryCursor
    read_at: datetime | None
    seconds: float
    is_read: bool
    trouble: str
    lasting: bool


def connection_health(session: Session, conn_id: str, now: datetime) -> ConnectionHealth:
    """Return what the journal shows of a connection.

    :param now: the time now
    """
    recently = now - RECENT
    last = last_callout_at(session, conn_id, now - LAST_CALLOUT)
    instants = {
        "recently": recently,
        "silent": now - SILENT,
        "unseen": now - UNSEEN,
        "overdue": now - OVERDUE,
        "since": _since(session, conn_id, now),
    }
    counts = session.execute(_COUNTS, {"conn_id": conn_id, **instants}).one()
    return ConnectionHealth(
        conn_id=conn_id,
        last_callout_at=last,
        ends_without_callouts=_ends_without_callouts(session, conn_id, now),
        history=history_health(session, conn_id, now),
        **counts._mapping,
    )


def newest_callouts(session: Session, conn_id: str) -> list[ReceivedCallout]:
    """Return the callouts among the newest status changes of a connection, the newest first."""
    change = TransitionRow
    rows = session.execute(
        select(change.source, change.body, change.observed_at)
        .where(change.conn_id == conn_id, change.kind == EntryKind.STATUS_CHANGE)
        .order_by(change.created_at.desc(), change.id.desc())
        .limit(_NEWEST)
    )
    # Filtered here: the other reports of a connection without callouts may be thousands.
    return [ReceivedCallout(row.body, row.observed_at) for row in rows if row.source == Source.CALLOUT]


def history_health(session: Session, conn_id: str, now: datetime) -> HistoryHealth | None:
    """Return how a connection's callout history is read; ``None`` where it is not."""
    row = history_row(session, conn_id, now)
    if row is None:
        return None
    # A first read that is under way has no time yet.
    return HistoryHealth(
        cursor=from_plain(HistoryCursor, row.cursor, "the cursor of the callout history"),
        read_at=row.read_at,
        seconds=row.seconds,
        is_read=is_read(row.read_at or row.claimed_at, row.seconds, now),
        trouble=row.trouble or "",
        lasting=row.lasting,
    )


class Unreported(NamedTuple):
    """Deferred tasks of which no process has reported anything.

    :param tasks: connection -> how many
    :param more: whether there are more, of these connections or of others
    """

    tasks: Counter[str]
    more: bool


def unreported(session: Session, now: datetime) -> Unreported:
    """Count the deferred tasks of which no process has reported anything: the ``MOST`` that have waited longest.

    Airflow itself has them, with the arguments of their triggers. So a feed that no process reaches shows here, even if
    the journal has no wait. The oldest count, so that a connection stays on the page until its tasks are reported, and
    no newer task takes its place.

    :param now: the time now
    """
    reported = exists().where(TASK_OF_WAIT, goes_on()).correlate(TaskInstance)
    silent = (
        select(Trigger)
        .options(lazyload(Trigger.task_instance))
        .join(TaskInstance, TaskInstance.trigger_id == Trigger.id)
        .where(TaskInstance.state == TaskInstanceState.DEFERRED)
        .where(Trigger.classpath.startswith(_TRIGGERS, autoescape=True), Trigger.created_date < now - UNSEEN)
        .where(~reported)
        .order_by(Trigger.created_date, Trigger.id)
        .limit(MOST + 1)
    )
    found = session.scalars(silent).all()
    return Unreported(Counter(_connections_of(found[:MOST])), len(found) > MOST)


def _connections_of(triggers: Iterable[Trigger]) -> Iterator[str]:
    for trigger in triggers:
        try:
            yield str(trigger.kwargs["mediation_conn_id"])
        except Exception:
            # They are encrypted, perhaps by a key that this process does not have; the page shows the rest.
            log.debug("The arguments of trigger %s cannot be read.", trigger.id, exc_info=True)


def _counts() -> Select[Any]:
    """Return the query for all counts of a connection: built once, and run as one statement."""
    change, known, waits = TransitionRow, SessionRow, WaitRow
    conn_id: ColumnElement[str] = bindparam("conn_id")
    recently: ColumnElement[datetime] = bindparam("recently")
    received = select(change.acknowledged_at).where(
        change.conn_id == conn_id, change.kind == EntryKind.UNPARSED, change.created_at >= recently
    )
    latest = received.order_by(change.created_at.desc()).limit(UNPARSED).subquery()
    unparsed = select(latest.c.acknowledged_at).where(latest.c.acknowledged_at.is_(None))
    unended = select(known.best_ended).where(
        known.conn_id == conn_id, known.terminal.is_(False), known.last_observed_at < bindparam("silent")
    )
    # Without callouts, all sessions of a connection are such, and tasks concluded the ends of most of them.
    newest = unended.order_by(known.last_observed_at.desc()).limit(_UNENDED).subquery()
    silent = select(newest.c.best_ended).where(newest.c.best_ended.is_(False))
    # By the index of waits without an end: a connection may have had very many that ended.
    of_connection = without_index(waits.conn_id) == conn_id
    waiting = select(waits.id).join(TaskInstance, TASK_OF_WAIT).where(of_connection, goes_on())
    # A task on a worker reports with each poll, and Airflow itself detects when its process dies. A deferred task
    # belongs to a triggerer; if none has taken it over yet, its worker reported it last.
    unseen = waiting.outerjoin(ReporterRow, REPORTER_OF_WAIT).where(
        bindparam("unseen") > SEEN_AT,
        TaskInstance.state == TaskInstanceState.DEFERRED,
    )
    return select(
        _count(unparsed).label("unparsed"),
        _count(_without_callouts(conn_id)).label("without_callouts"),
        _count(silent).label("silent"),
        _count(waiting).label("waiting"),
        _count(unseen).label("unseen"),
    )


class Uncalled(NamedTuple):
    """A session that Airflow started and that had no callout."""

    conn_id: str
    meter_id: str
    session_id: str
    begun_at: datetime


def sessions_without_callouts(session: Session, conn_id: str, now: datetime) -> list[Uncalled]:
    """Return the sessions of ``ConnectionHealth.without_callouts``, the newest first.

    :param now: the time now
    """
    columns = (getattr(SessionRow, name) for name in Uncalled._fields)
    found = _without_callouts(bindparam("conn_id")).with_only_columns(*columns).order_by(SessionRow.begun_at.desc())
    instants = {"overdue": now - OVERDUE, "since": _since(session, conn_id, now)}
    return [Uncalled(*row) for row in session.execute(found.limit(MOST), {"conn_id": conn_id, **instants})]


def _without_callouts(conn_id: ColumnElement[str]) -> Select[Any]:
    """Return the sessions that Airflow started and that had no callout.

    A session no longer counts once a later session of its meter had a callout: callouts arrive again. What was lost is
    repaired by ``reconcile``.
    """
    change, known, later = TransitionRow, SessionRow, aliased(SessionRow)
    of_session = tuple(getattr(change, name) == getattr(known, name) for name in ("conn_id", "meter_id", "session_id"))
    of_meter = (later.conn_id == known.conn_id, later.meter_id == known.meter_id, later.begun_at > known.begun_at)
    return select(known.id).where(
        known.conn_id == conn_id,
        known.begun_at >= bindparam("since"),
        known.begun_at < bindparam("overdue"),
        known.source == Source.RUN,
        ~exists().where(*of_session, change.source.in_(_REPORTED)),
        ~exists().where(*of_meter, later.source.in_(_REPORTED)),
    )


def _since(session: Session, conn_id: str, now: datetime) -> datetime:
    """Return since when callouts can be missing: if they were set up only today, there were none before."""
    since = now - RECENT
    if last_callout_at(session, conn_id, now - LAST_CALLOUT, since) is not None:
        return since
    change = TransitionRow
    first = select(func.min(change.created_at)).where(
        change.conn_id == conn_id,
        change.kind == EntryKind.STATUS_CHANGE,
        change.created_at >= since,
        change.source == Source.CALLOUT,
    )
    return session.scalar(first) or since


def _ends_without_callouts(session: Session, conn_id: str, now: datetime) -> tuple[str, ...]:
    """Return the meters at which a poll showed an end that no session has reached since the poll before.

    A meter no longer counts once a later session of it had a callout.
    """
    change, known = TransitionRow, SessionRow
    of_meters: dict[str, list[Any]] = {}
    for poll in session.execute(
        select(change.id, change.meter_id, change.status, change.previous_status, change.observed_at)
        .where(change.conn_id == conn_id, change.kind == EntryKind.POLL)
        .where(change.created_at >= now - RECENT, change.created_at < now - OVERDUE)
        .order_by(change.created_at.desc())
        .limit(_POLLS)
    ):
        of_meters.setdefault(str(poll.meter_id), []).append(poll)
    without_callouts = []
    for meter_id, polls in sorted(of_meters.items()):
        # Only the last end: reconcile also repairs what an earlier one missed. And a meter's first poll may show an end
        # of long ago.
        at = next((at for at, each in enumerate(polls) if each.status in ANY_TERMINAL and each.previous_status), None)
        if at is None:
            continue
        before = polls[at + 1].observed_at if at + 1 < len(polls) else _poll_before(session, conn_id, polls[at])
        # If the poll before was pruned, the same is true.
        if before is None:
            continue
        of_meter = known.conn_id == conn_id, known.meter_id == meter_id
        reached = exists().where(
            *of_meter,
            known.status == polls[at].status,
            known.terminal.is_(True),
            known.last_observed_at >= before - OVERDUE,
        )
        # Callouts arrive again.
        later = exists().where(*of_meter, known.begun_at > polls[at].observed_at, known.source.in_(_REPORTED))
        if not session.scalar(select(or_(reached, later))):
            without_callouts.append(meter_id)
    return tuple(without_callouts)


def _poll_before(session: Session, conn_id: str, poll: Any) -> datetime | None:
    """Return the time of the poll before one: at a meter that runs once a week, that is a week ago."""
    change = TransitionRow
    return session.scalar(
        select(change.observed_at)
        .where(change.conn_id == conn_id, change.meter_id == poll.meter_id, change.session_id.is_(None))
        .where(change.kind == EntryKind.POLL, change.id < poll.id)
        # By the index of sessions, as in the journal's writer.
        .order_by(change.session_id.desc(), change.id.desc())
        .limit(1)
    )


def _count(rows: Select[Any]) -> ScalarSelect[Any]:
    return select(func.count()).select_from(rows.limit(MOST).subquery()).scalar_subquery()


_COUNTS: Final = _counts()
