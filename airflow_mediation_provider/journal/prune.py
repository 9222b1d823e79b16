"""Delete what the journal need not know any more, a batch at a time: a session and its changes go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, delete, func, or_, select, true, tuple_

from airflow_mediation_provider.journal.rows import POLL_DRIVES
from airflow_mediation_provider.journal.tables import CallsRow, SessionRow, TransitionRow, WaitRow
from airflow_mediation_provider.journal.transaction import read, write
from airflow_mediation_provider.protocol.entry import EntryKind
from airflow_mediation_provider.protocol.pruning import Pruned, check_days
from airflow_mediation_provider.protocol.times import from_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import InstrumentedAttribute, Session

# Sessions or rows of one transaction: short enough that callouts go on beside it.
BATCH: Final = 200
_FIRST_INSTANT: Final = datetime.min.replace(tzinfo=UTC)
_LAST_INSTANT: Final = datetime.max.replace(tzinfo=UTC)
_DEADLINE_SECONDS: Final = 60.0


def oldest_to_keep(days: float, *, now: datetime | None = None) -> datetime:
    """Return the instant before which things are old.

    :param days: how long to keep them
    :raises ValueError: that is too short; says why
    """
    check_days(days)
    try:
        return (now or datetime.now(UTC)) - timedelta(days=days)
    except OverflowError:
        # So old is nothing.
        return _FIRST_INSTANT


def old_sessions(before: datetime, *, conn_id: str | None = None) -> tuple[int, int]:
    """Return how many sessions were not heard of since: those that ended, and those that did not.

    :param before: from :func:`oldest_to_keep`
    :param conn_id: of this connection alone
    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is away
    """
    query = select(SessionRow.terminal, func.count()).where(SessionRow.last_observed_at < before)
    if conn_id is not None:
        query = query.where(SessionRow.conn_id == conn_id)
    rows = read(lambda session: session.execute(query.group_by(SessionRow.terminal)).all())
    counts = {bool(ended): int(count) for ended, count in rows}
    return counts.get(True, 0), counts.get(False, 0)


def prune(before: datetime, *, conn_id: str | None = None, dry_run: bool = False) -> Iterator[Pruned]:
    """Delete what is older, and yield after each batch what it deleted; whoever stops in between may go on later.

    A session goes when it has ended, nothing was told of it since, and no wait that goes on can ask for it. One that
    did not end stays: its end may still come. Of a meter's polls the last one stays: the next is compared with it.

    :param before: from :func:`oldest_to_keep`
    :param conn_id: of this connection alone
    :param dry_run: delete nothing, and count what would be deleted
    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is away, or others lock it all the time
    """
    pass_ = _Pass(before, conn_id, dry_run)
    for step in (pass_.waits, pass_.sessions, pass_.others, pass_.calls):
        last: _Last | None = ()
        while last is not None:
            pruned, last = pass_.in_transaction(step, last)
            yield pruned


_IS_CHANGE: Final = TransitionRow.kind == EntryKind.STATUS_CHANGE
# The last row that a batch looked at, where the next one goes on: what stays is passed over once.
_Last = tuple[Any, ...]
_Step = Callable[["Session", _Last], tuple[Pruned, "_Last | None"]]
_Row = type[TransitionRow] | type[SessionRow] | type[WaitRow] | type[CallsRow]


@dataclass(frozen=True)
class _Pass:
    before: datetime
    conn_id: str | None
    dry_run: bool

    def in_transaction(self, step: _Step, last: _Last) -> tuple[Pruned, _Last | None]:
        def work(session: Session) -> tuple[Pruned, _Last | None]:
            return step(session, last)

        return read(work) if self.dry_run else write(work, deadline_seconds=_DEADLINE_SECONDS)

    def waits(self, session: Session, last: _Last) -> tuple[Pruned, _Last | None]:
        over = or_(WaitRow.ended_at < self.before, and_(WaitRow.ended_at.is_(None), WaitRow.seen_at < self.before))
        ids = session.scalars(
            select(WaitRow.id)
            .where(over, self._of(WaitRow), _behind(last, WaitRow.id))
            .order_by(WaitRow.id)
            .limit(BATCH)
        ).all()
        deleted = self._delete(session, WaitRow, WaitRow.id.in_(ids))
        return Pruned(waits=deleted), (ids[-1],) if len(ids) == BATCH else None

    def sessions(self, session: Session, last: _Last) -> tuple[Pruned, _Last | None]:
        place = (SessionRow.last_observed_at, SessionRow.id)
        page = (
            select(SessionRow)
            .where(SessionRow.terminal, SessionRow.last_observed_at < self.before, self._of(SessionRow))
            .where(_behind(last, *place))
            .order_by(*place)
            .limit(BATCH)
        )
        # What a writer holds is not old any more.
        rows = session.scalars(page if self.dry_run else page.with_for_update(skip_locked=True)).all()
        is_needed = _needs(session, self.before)
        needed = {row.id for row in rows if is_needed(row)}
        keys = {row.id: (row.conn_id, row.meter_id, row.session_id) for row in rows if row.id not in needed}
        names = (TransitionRow.conn_id, TransitionRow.meter_id, TransitionRow.session_id)
        recent = select(*names).where(tuple_(*names).in_(keys.values()), TransitionRow.created_at >= self.before)
        told_since = {tuple(each) for each in session.execute(recent)}
        going = {id_: key for id_, key in keys.items() if key not in told_since}
        pruned = Pruned(
            changes=self._delete(session, TransitionRow, and_(tuple_(*names).in_(going.values()), _IS_CHANGE)),
            sessions=self._delete(session, SessionRow, SessionRow.id.in_(going)),
            needed=len(needed),
        )
        return pruned, (rows[-1].last_observed_at, rows[-1].id) if len(rows) == BATCH else None

    def others(self, session: Session, last: _Last) -> tuple[Pruned, _Last | None]:
        place = (TransitionRow.created_at, TransitionRow.id)
        page = (
            select(
                TransitionRow.id,
                TransitionRow.created_at,
                TransitionRow.kind,
                TransitionRow.conn_id,
                TransitionRow.meter_id,
            )
            .where(~_IS_CHANGE, TransitionRow.created_at < self.before)
            .where(self._of(TransitionRow), _behind(last, *place))
            .order_by(*place)
            .limit(BATCH)
        )
        rows = session.execute(page).all()
        last_polls = _last_polls(session, {(row.conn_id, row.meter_id) for row in rows if row.kind == EntryKind.POLL})
        ids = [row.id for row in rows if row.id not in last_polls]
        pruned = Pruned(others=self._delete(session, TransitionRow, TransitionRow.id.in_(ids)))
        return pruned, (rows[-1].created_at, rows[-1].id) if len(rows) == BATCH else None

    def calls(self, session: Session, last: _Last) -> tuple[Pruned, _Last | None]:
        place = (CallsRow.hour, CallsRow.conn_id)
        page = select(*place).where(CallsRow.hour < self.before, self._of(CallsRow), _behind(last, *place))
        rows = session.execute(page.order_by(*place).limit(BATCH)).all()
        deleted = self._delete(session, CallsRow, tuple_(*place).in_([tuple(row) for row in rows]))
        return Pruned(others=deleted), tuple(rows[-1]) if len(rows) == BATCH else None

    def _of(self, row: _Row) -> ColumnElement[bool]:
        return true() if self.conn_id is None else row.conn_id == self.conn_id

    def _delete(self, session: Session, row: _Row, which: ColumnElement[bool]) -> int:
        if self.dry_run:
            return session.scalar(select(func.count()).select_from(row).where(which)) or 0
        result: Any = session.execute(delete(row).where(which).execution_options(synchronize_session=False))
        return int(result.rowcount)


def _behind(last: _Last, *place: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
    if not last:
        return true()
    *_, number = place
    if len(place) == 1:
        return and_(number > last[0])
    at = place[0]
    # The first of them is what an index can use.
    return and_(at >= last[0], or_(at > last[0], number > last[1]))


def _needs(session: Session, before: datetime) -> Callable[[SessionRow], bool]:
    """Return the question whether a wait that goes on can ask for a session.

    Who waits says so again every minute, so one that was not heard of for so long is over.
    """
    named: set[tuple[str, str, str]] = set()
    since: dict[tuple[str, str], datetime] = {}
    for wait in session.scalars(select(WaitRow).where(WaitRow.ended_at.is_(None), WaitRow.seen_at >= before)):
        if wait.session_id is not None:
            named.add((wait.conn_id, wait.meter_id, wait.session_id))
            continue
        meter = (wait.conn_id, wait.meter_id)
        since[meter] = min(since.get(meter, _LAST_INSTANT), _earliest(wait.condition))

    def is_needed(row: SessionRow) -> bool:
        wanted = since.get((row.conn_id, row.meter_id))
        return (row.conn_id, row.meter_id, row.session_id) in named or (wanted is not None and row.begun_at >= wanted)

    return is_needed


def _earliest(condition: dict[str, Any]) -> datetime:
    """Return when the session that a wait looks for may have begun; one that does not say looks at all of them."""
    try:
        return from_json(condition.get("since")) or _FIRST_INSTANT
    except (TypeError, ValueError):
        return _FIRST_INSTANT


def _last_polls(session: Session, meters: set[tuple[str, str | None]]) -> set[int]:
    """Return the last poll of each meter: of those that drive assets, and of the others."""
    row = TransitionRow
    last = (
        select(func.max(row.id))
        .where(row.kind == EntryKind.POLL, row.session_id.is_(None), tuple_(row.conn_id, row.meter_id).in_(meters))
        .group_by(row.conn_id, row.meter_id, row.notification_id.startswith(POLL_DRIVES))
    )
    return set(session.scalars(last))
