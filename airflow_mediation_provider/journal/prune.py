"""Delete old rows of the journal, a batch at a time: a session and its changes are deleted together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.models.taskinstance import TaskInstance
from sqlalchemy import and_, delete, exists, func, or_, select, true, tuple_

from airflow_mediation_provider.journal.rows import POLL_DRIVES
from airflow_mediation_provider.journal.session_list import SessionKey, of_rows
from airflow_mediation_provider.journal.tables import (
    AnswersRow,
    CallsRow,
    HistoryRow,
    ListedRow,
    MeterRow,
    ReceiptRow,
    ReporterRow,
    TransitionRow,
    VerdictRow,
    WaitRow,
)
from airflow_mediation_provider.journal.task_reports import REPORTER_OF_WAIT, SEEN_AT, TASK_OF_WAIT, goes_on
from airflow_mediation_provider.journal.transaction import read, write
from airflow_mediation_provider.journal.writer import rate
from airflow_mediation_provider.protocol.maintenance import Pruned, check_days
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind
from airflow_mediation_provider.protocol.times import from_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import InstrumentedAttribute, Session

# Sessions or rows of one transaction: few enough that callouts are stored meanwhile.
BATCH: Final = 200
_FIRST_INSTANT: Final = datetime.min.replace(tzinfo=UTC)
_LAST_INSTANT: Final = datetime.max.replace(tzinfo=UTC)
_DEADLINE_SECONDS: Final = 60.0


def oldest_to_keep(days: float, *, now: datetime | None = None) -> datetime:
    """Return the instant before which rows are old.

    :param days: how long to keep them
    :raises ValueError: that is too short; the message explains why
    """
    check_days(days)
    try:
        return (now or datetime.now(UTC)) - timedelta(days=days)
    except OverflowError:
        # Nothing is that old.
        return _FIRST_INSTANT


def old_sessions(before: datetime, *, conn_id: str | None = None) -> tuple[int, int]:
    """Return how many sessions have had no report since: those that ended, and those that did not.

    :param before: the result of :func:`oldest_to_keep`
    :param conn_id: only of this connection
    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is away
    """
    query = select(ListedRow.best_ended, func.count()).where(ListedRow.last_observed_at < before)
    if conn_id is not None:
        query = query.where(ListedRow.conn_id == conn_id)
    rows = read(lambda session: session.execute(query.group_by(ListedRow.best_ended)).all())
    counts = {bool(ended): int(count) for ended, count in rows}
    return counts.get(True, 0), counts.get(False, 0)


def prune(before: datetime, *, conn_id: str | None = None, dry_run: bool = False) -> Iterator[Pruned]:
    """Delete what is older, and yield after each batch what it deleted; a stopped run can be continued later.

    Before that, the best known status is corrected for sessions whose end was written by an API server of an older
    version during an upgrade.

    A session is deleted when it has ended, was not reported since, and no open wait can ask for it. A session without
    an end stays: its end may still come. The last poll of each meter stays: the next poll is compared with it.

    :param before: the result of :func:`oldest_to_keep`
    :param conn_id: only of this connection
    :param dry_run: delete nothing, and count what would be deleted
    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is unreachable, or locked by others all the time
    """
    pass_ = _Pass(before, conn_id, dry_run)
    deleting = (pass_.waits, pass_.sessions, pass_.others, pass_.calls, pass_.receipts, pass_.few)
    for step in deleting if dry_run else (pass_.ends, *deleting):
        last: _Last | None = ()
        while last is not None:
            pruned, last = pass_.in_transaction(step, last)
            yield pruned


_IS_CHANGE: Final = TransitionRow.kind == EntryKind.STATUS_CHANGE
# The last row that a batch read, after which the next one continues, so that rows that stay are read once.
_Last = tuple[Any, ...]
_Step = Callable[["Session", _Last], tuple[Pruned, "_Last | None"]]
_Row = type[
    TransitionRow
    | ListedRow
    | VerdictRow
    | WaitRow
    | CallsRow
    | HistoryRow
    | ReporterRow
    | ReceiptRow
    | AnswersRow
    | MeterRow
]


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
        over = or_(WaitRow.ended_at < self.before, and_(WaitRow.ended_at.is_(None), self.before > SEEN_AT))
        ids = session.scalars(
            select(WaitRow.id)
            .outerjoin(ReporterRow, REPORTER_OF_WAIT)
            .where(over, self._of(WaitRow), _behind(last, WaitRow.id))
            .order_by(WaitRow.id)
            .limit(BATCH)
        ).all()
        # A verdict on a session is deleted with the session.
        of_no_session = and_(VerdictRow.wait_id.in_(ids), VerdictRow.session_id.is_(None))
        pruned = Pruned(
            others=self._delete(session, VerdictRow, of_no_session),
            waits=self._delete(session, WaitRow, WaitRow.id.in_(ids)),
        )
        return pruned, (ids[-1],) if len(ids) == BATCH else None

    def ends(self, session: Session, last: _Last) -> tuple[Pruned, _Last | None]:
        place = (ListedRow.last_observed_at, ListedRow.id)
        page = (
            select(*place, ListedRow.conn_id, ListedRow.meter_id, ListedRow.session_id)
            .where(ListedRow.best_ended.is_(False), ListedRow.terminal, ListedRow.reported, self._of(ListedRow))
            .where(_behind(last, *place))
            .order_by(*place)
            .limit(BATCH)
        )
        rows = session.execute(page.with_for_update(skip_locked=True)).all()
        for _, _, *key in rows:
            rate(session, **dict(zip(SessionKey._fields, key, strict=True)))
        return Pruned(), tuple(rows[-1][:2]) if len(rows) == BATCH else None

    def sessions(self, session: Session, last: _Last) -> tuple[Pruned, _Last | None]:
        place = (ListedRow.last_observed_at, ListedRow.id)
        page = (
            select(ListedRow)
            .where(ListedRow.best_ended, ListedRow.last_observed_at < self.before, self._of(ListedRow))
            .where(_behind(last, *place))
            .order_by(*place)
            .limit(BATCH)
        )
        # A session that a writer has locked is not old any more.
        rows = session.scalars(page if self.dry_run else page.with_for_update(skip_locked=True)).all()
        is_needed = _needs(session, self.before)
        needed = {row.id for row in rows if is_needed(row)}
        keys = {row.id: (row.conn_id, row.meter_id, row.session_id) for row in rows if row.id not in needed}
        names = (TransitionRow.conn_id, TransitionRow.meter_id, TransitionRow.session_id)
        recent = select(*names).where(tuple_(*names).in_(keys.values()), TransitionRow.created_at >= self.before)
        reported_since = {tuple(each) for each in session.execute(recent)}
        of_sessions = select(ListedRow.id, VerdictRow.ti_id, VerdictRow.created_at).where(of_rows(VerdictRow))
        verdicts = session.execute(of_sessions, {"ids": list(keys)}).all()
        concluded_since = {row_id for row_id, _, at in verdicts if at >= self.before}
        going = {id_: key for id_, key in keys.items() if key not in reported_since and id_ not in concluded_since}
        tries = [ti_id for row_id, ti_id, _ in verdicts if row_id in going]
        batches = (tries[start : start + BATCH] for start in range(0, len(tries), BATCH))
        pruned = Pruned(
            changes=self._delete(session, TransitionRow, and_(tuple_(*names).in_(going.values()), _IS_CHANGE)),
            others=sum(self._delete(session, VerdictRow, VerdictRow.ti_id.in_(batch)) for batch in batches),
            sessions=self._delete(session, ListedRow, ListedRow.id.in_(going)),
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

    def receipts(self, session: Session, last: _Last) -> tuple[Pruned, _Last | None]:
        place = (ReceiptRow.received_at, ReceiptRow.id)
        page = select(*place).where(ReceiptRow.received_at < self.before, self._of(ReceiptRow), _behind(last, *place))
        rows = session.execute(page.order_by(*place).limit(BATCH)).all()
        deleted = self._delete(session, ReceiptRow, ReceiptRow.id.in_([row.id for row in rows]))
        return Pruned(others=deleted), tuple(rows[-1]) if len(rows) == BATCH else None

    def few(self, session: Session, _last: _Last) -> tuple[Pruned, _Last | None]:
        old = and_(HistoryRow.claimed_at < self.before, self._of(HistoryRow))
        silent = and_(ReporterRow.seen_at < self.before, self._of(ReporterRow))
        answered = and_(AnswersRow.hour < self.before, self._of(AnswersRow))
        # The name of a meter is of use as long as there are sessions of it.
        of_meter = ListedRow.conn_id == MeterRow.conn_id, ListedRow.meter_id == MeterRow.meter_id
        unused = and_(MeterRow.received_at < self.before, self._of(MeterRow), ~exists().where(*of_meter))
        rows = ((HistoryRow, old), (ReporterRow, silent), (AnswersRow, answered), (MeterRow, unused))
        return Pruned(others=sum(self._delete(session, row, which) for row, which in rows)), None

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
    # The first condition is the one that an index can use.
    return and_(at >= last[0], or_(at > last[0], number > last[1]))


def _needs(session: Session, before: datetime) -> Callable[[ListedRow], bool]:
    """Return the predicate whether an open wait can ask for a session.

    A wait is reported again every minute, so one without a report for so long is over.
    """
    named: set[tuple[str, str, str]] = set()
    since: dict[tuple[str, str], datetime] = {}
    waits = (
        select(WaitRow)
        .join(TaskInstance, TASK_OF_WAIT)
        .outerjoin(ReporterRow, REPORTER_OF_WAIT)
        .where(goes_on(), before <= SEEN_AT)
    )
    for wait in session.scalars(waits):
        if wait.session_id is not None:
            named.add((wait.conn_id, wait.meter_id, wait.session_id))
            continue
        meter = (wait.conn_id, wait.meter_id)
        since[meter] = min(since.get(meter, _LAST_INSTANT), _earliest(wait.condition))

    def is_needed(row: ListedRow) -> bool:
        wanted = since.get((row.conn_id, row.meter_id))
        return (row.conn_id, row.meter_id, row.session_id) in named or (wanted is not None and row.begun_at >= wanted)

    return is_needed


def _earliest(condition: dict[str, Any]) -> datetime:
    """Return the earliest start of a session that a wait can match; without ``since``, any session can match."""
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
