"""Whether callouts arrive and the feed is read, as the journal's rows show it; one connection at a time.

A journal without news says nothing by itself: perhaps no meter runs. So what is missed is held against what Airflow
learned by itself, from run replies and polls.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import exists, func, select

from airflow_mediation_provider.journal.queries import last_callout_at
from airflow_mediation_provider.journal.tables import SessionRow, TransitionRow, WaitRow
from airflow_mediation_provider.protocol.entry import EntryKind
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from sqlalchemy import Select
    from sqlalchemy.orm import Session

LOOKED_BACK: Final = timedelta(days=1)
"""Trouble of this span counts."""
LAST_CALLOUT: Final = timedelta(days=7)
OVERDUE: Final = timedelta(minutes=5)
"""A callout of what Airflow knows already should be there after this long."""
SILENT: Final = timedelta(hours=6)
"""A session that goes on and of which nothing was told for this long stands out; ``reconcile`` lists it too."""
UNSEEN: Final = timedelta(minutes=3)
"""A wait is reported once a minute, so one that was not for this long has lost its process, or the feed."""
MOST: Final = 100
"""Counted no further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What the journal shows of one connection; counts end at ``MOST``.

    :param last_callout_at: when the last callout that could be read came; ``None`` where none did for a week
    :param unread: callouts of a day that nobody could read
    :param unheard: sessions of a day that Airflow started, and of which no callout told anything
    :param unheard_ends: meters at which a poll of a day showed an end that no session came to
    :param silent: sessions that go on, and of which nothing was told for hours
    :param waiting: tasks that wait
    :param unseen: of these, such as nobody has reported for minutes
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
    told, known, waits = TransitionRow, SessionRow, WaitRow
    recently = now - LOOKED_BACK
    unread = select(told.id).where(
        told.conn_id == conn_id, told.kind == EntryKind.UNPARSED, told.created_at >= recently
    )
    unheard = select(known.id).where(
        known.conn_id == conn_id,
        known.begun_at >= recently,
        known.begun_at < now - OVERDUE,
        known.source == Source.RUN,
    )
    silent = select(known.id).where(
        known.conn_id == conn_id, known.terminal.is_(False), known.last_observed_at < now - SILENT
    )
    waiting = select(waits.id).where(waits.conn_id == conn_id, waits.ended_at.is_(None))
    return Signs(
        conn_id=conn_id,
        last_callout_at=last_callout_at(session, conn_id, now - LAST_CALLOUT),
        unread=_count(session, unread),
        unheard=_count(session, unheard),
        unheard_ends=_unheard_ends(session, conn_id, now),
        silent=_count(session, silent),
        waiting=_count(session, waiting.where(waits.seen_at >= now - UNSEEN)),
        unseen=_count(session, waiting.where(waits.seen_at < now - UNSEEN, waits.seen_at >= recently)),
    )


def _unheard_ends(session: Session, conn_id: str, now: datetime) -> tuple[str, ...]:
    """Return the meters at which a poll showed an end, and no session came to it since the poll before."""
    told, known = TransitionRow, SessionRow
    polls = session.execute(
        select(told.meter_id, told.status, told.observed_at)
        .where(told.conn_id == conn_id, told.kind == EntryKind.POLL)
        .where(told.created_at >= now - LOOKED_BACK, told.created_at < now - OVERDUE)
        # The first poll of a meter may show an end of long ago.
        .where(told.status.in_(ANY_TERMINAL), told.previous_status.is_not(None))
        .order_by(told.created_at.desc())
        .limit(MOST)
    ).all()
    # Of each meter the last one: what an earlier one missed, reconcile repairs as well.
    last = {poll.meter_id: poll for poll in reversed(polls)}
    return tuple(
        meter_id
        for meter_id, poll in sorted(last.items())
        if not session.scalar(
            select(
                exists().where(
                    known.conn_id == conn_id,
                    known.meter_id == meter_id,
                    known.status == poll.status,
                    known.terminal.is_(True),
                    known.last_observed_at >= poll.observed_at - SILENT,
                )
            )
        )
    )


def _count(session: Session, rows: Select[Any]) -> int:
    return session.scalar(select(func.count()).select_from(rows.limit(MOST).subquery())) or 0
