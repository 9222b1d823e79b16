"""The readers of Zuora's callout history: whose turn it is, and the cursor, which moves by compare-and-set.

Any number of processes may read. If several ask at once, one gets the turn; if two read nevertheless, only the first
moves the cursor, and what both store is stored once.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import select, update

from airflow_mediation_provider.journal.rows import stored_json
from airflow_mediation_provider.journal.tables import HistoryRow
from airflow_mediation_provider.journal.transaction import JournalMissing, JournalUnavailable, add, read, write
from airflow_mediation_provider.protocol.callouts.cursor import LEASE, HistoryCursor, is_read
from airflow_mediation_provider.protocol.maintenance import FURTHEST, HistoryReply
from airflow_mediation_provider.protocol.wire import HistoryStatus, from_plain, to_plain

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.maintenance import HistoryRequest

_DEADLINE_SECONDS: Final = 8.0
# A history that no reader asked for in this time counts as not being read any more.
_GIVEN_UP: Final = timedelta(days=7)
_LONGEST_TROUBLE: Final = 2000
# A scheduler is not punctual: a reader may ask earlier than its interval, by this share of it.
_EARLY: Final = 0.1


def take_turn(asked: HistoryRequest, *, conn_id: str, now: datetime | None = None) -> HistoryReply:
    """Answer a reader: give it its turn, or store the result of its read.

    :param asked: the reader's request
    :param conn_id: the connection that it signs
    :param now: the time now
    :raises JournalUnavailable: the journal cannot be written
    """
    at = now or datetime.now(UTC)

    def work(session: Session) -> HistoryReply:
        # The first statement writes, as SQLite needs it.
        add(session, HistoryRow, _new(conn_id, asked.seconds, at))
        if asked.revision is None:
            return _claim(session, conn_id, asked.seconds, at)
        return _finish(session, conn_id, asked, asked.revision, at)

    return write(work, deadline_seconds=_DEADLINE_SECONDS)


def history_row(session: Session, conn_id: str, now: datetime) -> HistoryRow | None:
    """Return the row of a connection's callout history; ``None`` if no reader asked for it for a week.

    :param now: the time now
    """
    row = session.get(HistoryRow, conn_id)
    return row if row is not None and now - row.claimed_at < _GIVEN_UP else None


def history_status(conn_id: str) -> HistoryStatus | None:
    """Return how a connection's callout history is read; ``None`` where it is not.

    :raises JournalUnavailable: the journal cannot be read
    """
    at = datetime.now(UTC)
    try:
        row = read(lambda session: history_row(session, conn_id, at))
    except JournalMissing:
        return None  # the migration of an upgrade is still to come, and callouts need no history
    if row is None:
        return None
    return HistoryStatus(
        late=_cursor(row).late_by(row.seconds).total_seconds(), read=is_read(row.read_at, row.seconds, at)
    )


def _new(conn_id: str, seconds: float, at: datetime) -> dict[str, object]:
    begin = to_plain(HistoryCursor(read_to=at))
    state = {"claimed_at": at - timedelta(seconds=seconds), "open": False, "lasting": False}
    return {"conn_id": conn_id, "revision": 0, "cursor": begin, "seconds": seconds, **state}


def _claim(session: Session, conn_id: str, seconds: float, at: datetime) -> HistoryReply:
    row = _locked(session, conn_id)
    pause = timedelta(seconds=seconds)
    due = row.claimed_at + (max(pause, LEASE) if row.open else pause)
    if due - at > _EARLY * pause:
        return _reply(row, wait=(due - at).total_seconds())
    row.claimed_at, row.open, row.seconds = at, True, seconds
    cursor = _cursor(row)
    if cursor.read_to < at - FURTHEST:
        row.cursor = to_plain(HistoryCursor(read_to=at - FURTHEST))
        row.revision += 1
    return _reply(row)


def _finish(session: Session, conn_id: str, asked: HistoryRequest, revision: int, at: datetime) -> HistoryReply:
    cursor = asked.cursor
    if cursor is not None:
        moved = {"cursor": to_plain(cursor), "revision": revision + 1, "trouble": None, "lasting": False}
        own = update(HistoryRow).where(HistoryRow.conn_id == conn_id, HistoryRow.revision == revision)
        done = {"claimed_at": at} if asked.goes_on else {"open": False, "read_at": cursor.read_at}
        session.execute(own.values(**moved, **done).execution_options(synchronize_session=False))
    row = _locked(session, conn_id)
    if cursor is None and row.revision == revision:
        row.open, row.trouble, row.lasting = False, stored_json(asked.trouble[:_LONGEST_TROUBLE]), asked.lasting
    return _reply(row)


def _locked(session: Session, conn_id: str) -> HistoryRow:
    rows = select(HistoryRow).where(HistoryRow.conn_id == conn_id).with_for_update()
    row = session.scalar(rows.execution_options(populate_existing=True))
    if row is None:
        raise JournalUnavailable("the row of the callout history was deleted")
    return row


def _reply(row: HistoryRow, wait: float = 0.0) -> HistoryReply:
    return HistoryReply(cursor=_cursor(row), revision=row.revision, wait=wait)


def _cursor(row: HistoryRow) -> HistoryCursor:
    return from_plain(HistoryCursor, row.cursor, "the cursor of the callout history")
