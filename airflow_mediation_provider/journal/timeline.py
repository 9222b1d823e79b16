"""All that was told of one session, as a page shows it, and what polls showed of its meter meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, or_, select

from airflow_mediation_provider.journal.filters import without_index
from airflow_mediation_provider.journal.tables import TransitionRow
from airflow_mediation_provider.protocol.entry import EntryKind

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.listing import Listed

# A session that loops for ever is cut; the newest is what counts.
_MOST: Final = 500
_MOST_UNREAD: Final = 200
# What a poll shows right after the end may be of this session still.
_AFTER_END: Final = timedelta(minutes=10)
# A poll is reported by whoever polls, once the API server is there.
_KEPT_LATE: Final = timedelta(hours=1)


class Told(NamedTuple):
    """One row of the timeline.

    :param kind: ``status_change``, ``periodic`` or ``poll``; a poll names no session, so it is of the meter
    """

    id: int
    kind: str
    status: str | None
    previous_status: str | None
    observed_at: datetime
    source: str
    notification_id: str | None
    started_at: datetime | None
    ended_at: datetime | None


class Unread(NamedTuple):
    """A callout that nobody could read.

    :param body: what came, and why it could not be read
    """

    id: int
    conn_id: str
    observed_at: datetime
    body: dict[str, Any]


_TOLD: Final = tuple(getattr(TransitionRow, name) for name in Told._fields)
_UNREAD: Final = tuple(getattr(TransitionRow, name) for name in Unread._fields)


def timeline(session: Session, listed: Listed) -> tuple[list[Told], bool]:
    """Return what was told of a session, the last first, and whether that is not all of it."""
    row = TransitionRow
    of_meter = and_(row.conn_id == listed.conn_id, row.meter_id == listed.meter_id)
    own = select(*_TOLD).where(of_meter, row.session_id == listed.session_id)
    # By the time at which they were kept an index leads to them; all the polls of a meter are many.
    polls = select(*_TOLD).where(
        row.conn_id == listed.conn_id,
        row.kind == EntryKind.POLL,
        row.created_at >= listed.begun_at,
        row.observed_at >= listed.begun_at,
        without_index(row.meter_id) == listed.meter_id,
    )
    if listed.over_at is not None:
        last = listed.over_at + _AFTER_END
        polls = polls.where(row.observed_at <= last, row.created_at <= last + _KEPT_LATE)
    told = [
        Told(*each)
        for query in (own.order_by(row.observed_at.desc(), row.id.desc()), polls.order_by(row.created_at.desc()))
        for each in session.execute(query.limit(_MOST + 1))
    ]
    told.sort(key=lambda each: (each.observed_at, each.id), reverse=True)
    return told[:_MOST], len(told) > _MOST


def unread_callouts(session: Session, conn_ids: list[str]) -> list[Unread]:
    """Return the callouts of some connections that nobody could read, the last first."""
    if not conn_ids:
        return []
    row = TransitionRow
    query = select(*_UNREAD).where(row.kind == EntryKind.UNPARSED, or_(*(row.conn_id == each for each in conn_ids)))
    return [Unread(*each) for each in session.execute(query.order_by(row.created_at.desc()).limit(_MOST_UNREAD))]
