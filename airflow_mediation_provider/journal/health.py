"""Whether callouts arrive and the feed is read, as the journal's rows show it; one connection at a time.

A journal without news says nothing by itself: perhaps no meter runs. So what is missed is held against what Airflow
learned by itself, from run replies and polls.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.models.taskinstance import TaskInstance
from airflow.utils.state import TaskInstanceState
from sqlalchemy import bindparam, exists, func, select
from sqlalchemy.orm import aliased

from airflow_mediation_provider.journal.queries import last_callout_at
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow, WaitRow
from airflow_mediation_provider.journal.waits import TASK_OF_WAIT, goes_on
from airflow_mediation_provider.protocol.entry import EntryKind
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, ScalarSelect, Select
    from sqlalchemy.orm import Session

LOOKED_BACK: Final = timedelta(days=1)
"""Trouble of this span counts."""
LAST_CALLOUT: Final = timedelta(days=7)
OVERDUE: Final = timedelta(minutes=5)
"""A callout of what Airflow knows already should be there after this long."""
SILENT: Final = timedelta(hours=6)
"""A session that goes on and of which nothing was told for this long stands out; ``reconcile`` lists it too."""
UNSEEN: Final = timedelta(minutes=3)
"""A triggerer reports its waits once a minute, so one that was not for this long has lost it, or the feed."""
MOST: Final = 100
"""Counted no further."""
_POLLS: Final = 1000
# Whichever of these told of a session: a callout did, or Zuora says that it should have.
_TOLD: Final = (Source.CALLOUT, Source.HISTORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What the journal shows of one connection; counts end at ``MOST``.

    :param last_callout_at: when the last callout that could be read came; ``None`` where none did for a week
    :param unread: callouts of a day that nobody could read
    :param unheard: sessions of a day that Airflow started, and of which no callout told anything, nor of a later one
        of the meter
    :param unheard_ends: meters at which a poll of a day showed an end that no session came to
    :param silent: sessions that go on, and of which nothing was told for hours
    :param waiting: tasks that wait
    :param unseen: of these, such as a triggerer should have reported, and has not for minutes
    """

    conn_id: str
    last_callout_at: datetime | None
    unread: int
    unheard: int
    unheard_ends: tuple[str, ...]
    silent: int
    waiting: int
    unseen: int


def signs(session: Session, conn_id: str, now: datetime) -> Signs:
    """Return what the journal shows of a connection.

    :param now: the time now
    """
    recently = now - LOOKED_BACK
    last = last_callout_at(session, conn_id, now - LAST_CALLOUT)
    instants = {
        "recently": recently,
        "silent": now - SILENT,
        "unseen": now - UNSEEN,
        "overdue": now - OVERDUE,
        "since": _since(session, conn_id, now),
    }
    counts = session.execute(_COUNTS, {"conn_id": conn_id, **instants}).one()
    return Signs(
        conn_id=conn_id,
        last_callout_at=last,
        unheard_ends=_unheard_ends(session, conn_id, now),
        **counts._mapping,
    )


def _counts() -> Select[Any]:
    """Return the question for all counts of a connection: put together once, and asked at once."""
    told, known, waits = TransitionRow, SessionRow, WaitRow
    conn_id: ColumnElement[str] = bindparam("conn_id")
    recently: ColumnElement[datetime] = bindparam("recently")
    unread = select(told.id).where(
        told.conn_id == conn_id, told.kind == EntryKind.UNPARSED, told.created_at >= recently
    )
    silent = select(known.id).where(
        known.conn_id == conn_id, known.terminal.is_(False), known.last_observed_at < bindparam("silent")
    )
    waiting = (
        select(waits.id)
        .outerjoin(TaskInstance, TASK_OF_WAIT)
        .where(waits.conn_id == conn_id, waits.ended_at.is_(None), waits.seen_at >= recently, goes_on())
    )
    # A task on a worker reports when it looks, and Airflow itself sees whether its process lives.
    unseen = waiting.where(
        waits.mode == "triggerer",
        waits.seen_at < bindparam("unseen"),
        func.coalesce(TaskInstance.state, TaskInstanceState.DEFERRED) == TaskInstanceState.DEFERRED,
    )
    return select(
        _count(unread).label("unread"),
        _count(_unheard(conn_id)).label("unheard"),
        _count(silent).label("silent"),
        _count(waiting).label("waiting"),
        _count(unseen).label("unseen"),
    )


def _unheard(conn_id: ColumnElement[str]) -> Select[Any]:
    """Return the sessions that Airflow started and of which no callout told anything.

    One is forgiven once a callout tells of a later session of its meter: they arrive again. What is lost for ever,
    ``reconcile`` repairs.
    """
    told, known, later = TransitionRow, SessionRow, aliased(SessionRow)
    of_session = (told.conn_id == known.conn_id, told.meter_id == known.meter_id, told.session_id == known.session_id)
    of_meter = (later.conn_id == known.conn_id, later.meter_id == known.meter_id, later.begun_at > known.begun_at)
    return select(known.id).where(
        known.conn_id == conn_id,
        known.begun_at >= bindparam("since"),
        known.begun_at < bindparam("overdue"),
        known.source == Source.RUN,
        ~exists().where(*of_session, told.source.in_(_TOLD)),
        ~exists().where(*of_meter, later.source.in_(_TOLD)),
    )


def _since(session: Session, conn_id: str, now: datetime) -> datetime:
    """Return since when callouts can be missed: where they were only set up today, they need not tell of before."""
    since = now - LOOKED_BACK
    if last_callout_at(session, conn_id, now - LAST_CALLOUT, since) is not None:
        return since
    told = TransitionRow
    first = select(func.min(told.created_at)).where(
        told.conn_id == conn_id,
        told.kind == EntryKind.STATUS_CHANGE,
        told.created_at >= since,
        told.source == Source.CALLOUT,
    )
    return session.scalar(first) or since


def _unheard_ends(session: Session, conn_id: str, now: datetime) -> tuple[str, ...]:
    """Return the meters at which a poll showed an end, and no session came to it since the poll before."""
    told, known = TransitionRow, SessionRow
    of_meters: dict[str, list[Any]] = {}
    for poll in session.execute(
        select(told.id, told.meter_id, told.status, told.previous_status, told.observed_at)
        .where(told.conn_id == conn_id, told.kind == EntryKind.POLL)
        .where(told.created_at >= now - LOOKED_BACK, told.created_at < now - OVERDUE)
        .order_by(told.created_at.desc())
        .limit(_POLLS)
    ):
        of_meters.setdefault(str(poll.meter_id), []).append(poll)
    unheard = []
    for meter_id, polls in sorted(of_meters.items()):
        # The last one: what an earlier one missed, reconcile repairs as well. And of a meter's first poll nobody knows
        # whether it shows an end of long ago.
        at = next((at for at, each in enumerate(polls) if each.status in ANY_TERMINAL and each.previous_status), None)
        if at is None:
            continue
        before = polls[at + 1].observed_at if at + 1 < len(polls) else _poll_before(session, conn_id, polls[at])
        # Where that one was pruned, nobody knows either.
        if before is None:
            continue
        came = exists().where(
            known.conn_id == conn_id,
            known.meter_id == meter_id,
            known.status == polls[at].status,
            known.terminal.is_(True),
            known.last_observed_at >= before - OVERDUE,
        )
        if not session.scalar(select(came)):
            unheard.append(meter_id)
    return tuple(unheard)


def _poll_before(session: Session, conn_id: str, poll: Any) -> datetime | None:
    """Return when the poll before one was made: of a meter that runs once a week, that is a week ago."""
    told = TransitionRow
    return session.scalar(
        select(told.observed_at)
        .where(told.conn_id == conn_id, told.meter_id == poll.meter_id, told.session_id.is_(None))
        .where(told.kind == EntryKind.POLL, told.id < poll.id)
        # By the index of sessions, as the journal's writer finds it.
        .order_by(told.session_id.desc(), told.id.desc())
        .limit(1)
    )


def _count(rows: Select[Any]) -> ScalarSelect[Any]:
    return select(func.count()).select_from(rows.limit(MOST).subquery()).scalar_subquery()


_COUNTS: Final = _counts()
