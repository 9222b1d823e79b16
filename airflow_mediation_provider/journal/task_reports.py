"""What tasks report: the session that each waits for, what they concluded from polls, what else they did, their calls.

A verdict is stored while Airflow still has the try that concluded it; only the first report counts. A wait belongs to
the process that started it last, its owner. Reports of another process change nothing, for example of a triggerer that
was suspended and lost its triggers.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from uuid import UUID

from airflow.models.taskinstance import TaskInstance
from airflow.utils.state import TaskInstanceState
from sqlalchemy import and_, bindparam, delete, func, insert, or_, select, true, update

from airflow_mediation_provider.journal.rows import (
    CONCLUDED,
    of_session,
    stored_json,
    verdict_of,
    verdict_values,
    why_unfit,
)
from airflow_mediation_provider.journal.tables import Base, CallsRow, ReporterRow, VerdictRow, WaitRow
from airflow_mediation_provider.journal.transaction import UnstorableError, add, write
from airflow_mediation_provider.protocol.sessions.verdict import TRIGGERER, WORKER
from airflow_mediation_provider.protocol.wire import to_plain
from airflow_mediation_provider.protocol.zuora.api_usage import ApiUsage, beginning_of_hour, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Row
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict
    from airflow_mediation_provider.protocol.wire import WaitEnded, WaitReport
    from airflow_mediation_provider.protocol.zuora.api_usage import HourlyUsage

T = TypeVar("T")
log = logging.getLogger(__name__)

LEFT: Final = "left"
"""The outcome of a wait that its process left; Airflow's own state decides whether the task still waits."""
TASK: Final = "task"
"""The mode of a row for a task that does not wait."""
TASK_OF_WAIT: Final = and_(
    TaskInstance.dag_id == WaitRow.dag_id,
    TaskInstance.run_id == WaitRow.run_id,
    TaskInstance.task_id == WaitRow.task_id,
    TaskInstance.map_index == WaitRow.map_index,
)
"""Joins a wait to its task instance, by Airflow's own index."""
REPORTER_OF_WAIT: Final = ReporterRow.id == WaitRow.reporter
"""Joins a wait to what reports it."""
SEEN_AT: Final = func.coalesce(ReporterRow.seen_at, WaitRow.seen_at)
"""When a wait was last reported to go on; needs ``REPORTER_OF_WAIT``, outer."""
# The states in which a task waits, or moves between a triggerer and a worker.
_WAITING: Final = tuple(
    TaskInstanceState(each) for each in ("running", "deferred", "up_for_reschedule", "scheduled", "queued")
)
_LONGEST_NOTE: Final = 100_000
"""Characters of a note's texts; a branch may name many tasks."""
_OF_TASK: Final = ("meter_id", "session_id", "dag_id", "run_id", "task_id", "map_index", "try_number")
_FEW: Final = 50
"""So many waits, which may begin in a second, share one transaction: its commit takes as long as ten waits."""
_BATCH: Final = 25
"""Of more, so many at a time: on SQLite that takes no longer than a few callouts, which come in between."""
_BREATH_SECONDS: Final = 0.005
"""Between two of these transactions, for the callouts that wait for the turn to write or for the processor."""
_NOT_COLUMNS: Final = frozenset({"begins"})
# Without the ORM, which would take as long as all else; the statements of each report are built once.
_WAIT: Final = Base.metadata.tables[WaitRow.__tablename__]
_REPORTER: Final = Base.metadata.tables[ReporterRow.__tablename__]
_CONCLUDED: Final = select(*CONCLUDED).where(*of_session(Base.metadata.tables[VerdictRow.__tablename__]))
_KNOWN: Final = (
    select(*(_WAIT.c[name] for name in ("id", "conn_id", "owner", "ended_at", "outcome", "session_id", "reporter")))
    .where(_WAIT.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(_WAIT.c.id)
    .with_for_update()
)
_BEGIN: Final = insert(_WAIT)
_SEE: Final = (
    update(_REPORTER)
    .where(_REPORTER.c.id == bindparam("reporter"), _REPORTER.c.conn_id == bindparam("of_conn_id"))
    .values(seen_at=bindparam("now"))
)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)


class Stored(NamedTuple):
    """Which verdicts were stored.

    :param new: those that are stored now
    :param refused: one sentence for each that is not stored, unless the try has a verdict already
    """

    new: list[TaskVerdict]
    refused: list[str]


def store_verdicts(session: Session, conn_id: str, verdicts: Iterable[TaskVerdict], *, at: datetime) -> Stored:
    """Store the verdicts of tries that Airflow still has; from a triggerer, only those of still deferred tasks.

    :param conn_id: the connection over which they were reported
    :param at: the time now
    """
    new, refused = [], []
    # The same order in all writers, so that two of them never wait for each other.
    for verdict in sorted(verdicts, key=lambda each: each.ti_id):
        values = verdict_values(verdict, conn_id=conn_id, at=at)
        reason = _why_unfit(values)
        # The row first: on SQLite a transaction writes before it reads.
        if not reason and not add(session, VerdictRow, values):
            continue
        if not reason and (reason := _why_not_now(session, verdict)):
            session.execute(delete(VerdictRow).where(VerdictRow.ti_id == verdict.ti_id))
        if reason:
            refused.append(f"the verdict of task {verdict.task_id} in run {verdict.run_id}: {reason}"[:500])
        else:
            new.append(verdict)
    return Stored(new, refused)


def verdicts_of(session: Session, conn_id: str, meter_id: str, session_id: str) -> list[TaskVerdict]:
    """Return what tasks concluded of a session."""
    rows = session.execute(_CONCLUDED, {"conn_id": conn_id, "meter_id": meter_id, "session_id": session_id})
    return [verdict_of(row) for row in rows]


def _why_unfit(values: dict[str, Any]) -> str:
    if reason := why_unfit(VerdictRow, values):
        return reason
    try:
        UUID(values["ti_id"])
    except ValueError:
        return "its ti_id is not the id of a task instance"
    return ""


def _why_not_now(session: Session, verdict: TaskVerdict) -> str:
    row = TaskInstance
    of_try = select(row.state, row.dag_id, row.run_id, row.task_id, row.map_index).where(row.id == UUID(verdict.ti_id))
    found = session.execute(of_try).one_or_none()
    if found is None or tuple(found[1:]) != (verdict.dag_id, verdict.run_id, verdict.task_id, verdict.map_index):
        return "Airflow does not have this try of the task any more"
    if verdict.mode == TRIGGERER and found.state != TaskInstanceState.DEFERRED:
        return f"the task is not deferred any more, but {found.state}"
    return ""


def goes_on() -> ColumnElement[bool]:
    """Return the condition that a task's wait goes on, as far as Airflow has its state; needs ``TASK_OF_WAIT``, outer.

    A process that is killed reports no end, and one that shuts down does not end the wait. So Airflow's own
    state of the task decides: a wait is also over when its task has ended, is in another try, or is gone.
    """
    return and_(
        WaitRow.ended_at.is_(None),
        TaskInstance.state.is_not(None),
        TaskInstance.state.in_(_WAITING),
        TaskInstance.try_number == WaitRow.try_number,
    )


class Kept(NamedTuple):
    """What was stored of some reports of waits.

    :param open: whether all waits that were reported as open are stored; a wait that begins and whose texts do not fit
        is not, but the others are
    :param reporter_known: whether the waits that the reporter reported before go on
    """

    open: bool
    reporter_known: bool


def record_waits(
    *,
    conn_id: str,
    open: Sequence[WaitReport] = (),  # noqa: A002  # as in the request
    ended: Sequence[WaitEnded] = (),
    reporter: str = "",
    deadline_seconds: float = 3.0,
) -> Kept:
    """Store the waits of tasks as they are now.

    A wait that is not reported any more becomes stale by its ``seen_at``: its process may have died. With a reporter,
    one row has that time for all of its waits, so that nothing is written of a wait that goes on unchanged. A few waits
    share a transaction, so that a callout does not have to wait for all of them.

    :param conn_id: the connection of the waits
    :param open: waits that begin, or that go on
    :param ended: waits that ended
    :param reporter: what reports them; empty from workers, and from an older version
    :param deadline_seconds: how long to wait for the turn to write
    :raises JournalUnavailable: not all was written
    """
    deadline, now = time.monotonic() + deadline_seconds, datetime.now(UTC)
    unfit = why_unfit(ReporterRow, {"id": reporter})
    reporter = "" if unfit else reporter
    # The same order in all writers, so that two of them never wait for each other.
    reports = sorted((each for each in open if _fits(each)), key=lambda each: each.id)
    ends = sorted((each for each in ended if _fits(each)), key=lambda each: each.id)
    chunks = [*map(_Chunk, _chunks(reports)), *(_Chunk(ends=each) for each in _chunks(ends))] or [_Chunk()]
    # With the last ones: what is reported as known is stored.
    chunks[-1] = chunks[-1]._replace(sees=bool(reporter))

    def store(chunk: _Chunk, session: Session) -> bool:
        if chunk.reports:
            _go_on(conn_id, chunk.reports, session, reporter=reporter or None, now=now)
        _end(conn_id, chunk.ends, session, now=now)
        return chunk.sees and _see(conn_id, reporter, now, session)

    stored: set[str] = set()
    known = False
    for number, chunk in enumerate(chunks):
        if number:
            time.sleep(_BREATH_SECONDS)
        ids, known = _stored(store, chunk, deadline)
        stored |= ids
    return Kept(open=all(report.id in stored for report in open if report.begins), reporter_known=known)


class _Chunk(NamedTuple):
    """What one transaction stores.

    :param sees: also that the waits of the reporter go on
    """

    reports: Sequence[WaitReport] = ()
    ends: Sequence[WaitEnded] = ()
    sees: bool = False

    @property
    def parts(self) -> Sequence[_Chunk]:
        """The same as chunks of one item each."""
        seen = [_Chunk(sees=True)] if self.sees else []
        return [*(_Chunk([each]) for each in self.reports), *(_Chunk(ends=[each]) for each in self.ends), *seen]


def _stored(store: Callable[[_Chunk, Session], bool], chunk: _Chunk, deadline: float) -> tuple[set[str], bool]:
    """Store a chunk together, or where the database refuses a value each item by itself.

    :return: the ids of the reports that are stored, and whether the reporter was known
    """
    parts = chunk.parts
    if not parts:
        return set(), False
    try:
        known = write(partial(store, chunk), deadline_seconds=deadline - time.monotonic())
    except UnstorableError as error:
        if len(parts) == 1:
            items: list[WaitReport | WaitEnded] = [*chunk.reports, *chunk.ends]
            if not items:
                raise
            log.warning("A report of wait %.80a is not stored: %s", items[0].id, error)
            return set(), False
        found = [_stored(store, part, deadline) for part in parts]
        return set().union(*(ids for ids, _ in found)), found[-1][1]
    return {report.id for report in chunk.reports}, known


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    size = _FEW if len(items) <= _FEW else _BATCH
    return (items[start : start + size] for start in range(0, len(items), size))


def _see(conn_id: str, reporter: str, now: datetime, session: Session) -> bool:
    """Note that all waits of a reporter go on, and return whether it was known."""
    known: Any = session.execute(_SEE, {"reporter": reporter, "of_conn_id": conn_id, "now": now})
    if known.rowcount:
        return True
    add(session, ReporterRow, {"id": reporter, "conn_id": conn_id, "seen_at": now})
    return False


def wait_owners(session: Session, conn_id: str, wait_ids: Sequence[str]) -> dict[str, str | None]:
    """Return the stored owner of each of some waits, ``None`` if none is stored."""
    found = select(WaitRow.id, WaitRow.owner).where(WaitRow.conn_id == conn_id, WaitRow.id.in_(wait_ids))
    return dict.fromkeys(wait_ids) | {row.id: row.owner for row in session.execute(found)}


def store_note(session: Session, conn_id: str, note: TaskNote) -> None:
    """Store what a task did with a session, in the row of its wait if there is one."""
    _add_to_wait(session, conn_id, note.id, note, TASK, {"note": stored_json(to_plain(note))})


def store_end_status(session: Session, conn_id: str, verdict: TaskVerdict) -> None:
    """Store the status that a task concluded, in the row of its wait."""
    values = {"status": verdict.status, "evidence": "poll", "certain": verdict.certain}
    _add_to_wait(session, conn_id, verdict.wait_id, verdict, verdict.mode, values)


def why_not_note(note: TaskNote) -> str:
    """Return why a note cannot be stored, empty if it can."""
    columns = ("id", *_OF_TASK, "status", "evidence")
    times = dict.fromkeys(("created_at", "seen_at", "ended_at"), note.at)
    if reason := why_unfit(WaitRow, {name: getattr(note, name) for name in columns} | times):
        return reason
    if sum(map(len, (note.message, *note.followed, *note.skipped))) > _LONGEST_NOTE:
        return f"its texts have more than {_LONGEST_NOTE:,} characters"
    return ""


def _fits(message: WaitReport | WaitEnded) -> bool:
    reason = why_unfit(WaitRow, _values(message))
    if reason:
        log.warning("A report of wait %.80a is not stored: %s", message.id, reason)
    return not reason


def _go_on(
    conn_id: str, reports: Sequence[WaitReport], session: Session, *, reporter: str | None, now: datetime
) -> None:
    """Store waits that begin or go on, by few statements for all of them."""
    # On SQLite no other writer is in between, so that this transaction may read first.
    known = session.execute(_KNOWN, {"ids": [report.id for report in reports]})
    rows: dict[str, Any] = {row.id: row for row in known}
    unchanged: list[WaitReport] = []
    written: list[WaitReport] = []
    for report in reports:
        row = rows.get(report.id)
        if row is not None and (row.conn_id != conn_id or not _may_go_on(row, report)):
            continue
        (unchanged if row is not None and _is_same(row, report, reporter) else written).append(report)
    if unchanged and reporter is None:
        seen = update(WaitRow).where(WaitRow.id.in_([report.id for report in unchanged])).values(seen_at=now)
        session.execute(seen.execution_options(synchronize_session=False))
    if replaced := [report.id for report in written if report.id in rows]:
        session.execute(delete(WaitRow).where(WaitRow.id.in_(replaced)))
    if written:
        # Each column is new: the end of an earlier wait of the task does not apply to this one. Another writer's insert
        # at the same time makes this transaction fail, and it is retried.
        more = {"conn_id": conn_id, "reporter": reporter, "seen_at": now}
        more |= dict.fromkeys(("ended_at", "outcome", "status", "evidence", "certain", "note"))
        values = [
            _values(report) | more | {"owner": report.owner or None, "condition": stored_json(report.condition)}
            for report in written
        ]
        session.execute(_BEGIN, values)


def _may_go_on(row: Row[Any], report: WaitReport) -> bool:
    """Return whether a report counts: its process owns the stored wait, which goes on, or it begins the wait anew."""
    if report.begins or not report.owner or row.owner is None:
        return True
    return bool(row.owner == report.owner and row.ended_at is None)


def _is_same(row: Row[Any], report: WaitReport, reporter: str | None) -> bool:
    """Return whether nothing but the time of the report is new: of an owner's wait, only the session may change."""
    stored = (row.owner, row.ended_at, row.outcome, row.session_id, row.reporter)
    return bool(report.owner) and stored == (report.owner, None, None, report.session_id, reporter)


def _end(conn_id: str, ends: Sequence[WaitEnded], session: Session, *, now: datetime) -> None:
    for end in ends:
        values = {
            name: value for name, value in _values(end).items() if value is not None and name not in ("id", "owner")
        }
        if end.outcome == LEFT:
            # From now on nothing reports it.
            values |= {"reporter": None, "seen_at": now}
            del values["ended_at"]
        may = _is_of(end.owner)
        if end.begins:
            # The worker passed the wait to a process that had no time to report it, and no triggerer has reported it
            # since.
            may = or_(may, WaitRow.mode == WORKER)
        _update(session, conn_id, end.id, and_(may, WaitRow.ended_at.is_(None)), values)


def _is_of(owner: str) -> ColumnElement[bool]:
    """Return the condition that a wait belongs to an owner; an older version of this package sends none."""
    return or_(WaitRow.owner.is_(None), WaitRow.owner == owner) if owner else true()


def _add_to_wait(
    session: Session, conn_id: str, wait_id: str, of: TaskNote | TaskVerdict, mode: str, values: Mapping[str, Any]
) -> None:
    """Add to the row of a task's wait; if the task has none, insert one that has ended."""
    known = {"session_id": func.coalesce(WaitRow.session_id, of.session_id), **values}
    if _update(session, conn_id, wait_id, WaitRow.mode != TASK, known):
        return
    session.execute(delete(WaitRow).where(WaitRow.id == wait_id, WaitRow.conn_id == conn_id))
    row = {name: getattr(of, name) for name in _OF_TASK}
    row |= {"id": wait_id, "conn_id": conn_id, "version": "", "condition": {}, "mode": mode}
    add(session, WaitRow, {**row, **dict.fromkeys(("created_at", "seen_at", "ended_at"), of.at), **values})


def _update(
    session: Session, conn_id: str, wait_id: str, which: ColumnElement[bool], values: Mapping[str, Any]
) -> bool:
    statement = update(WaitRow).where(WaitRow.id == wait_id, WaitRow.conn_id == conn_id, which).values(**values)
    result: Any = session.execute(statement.execution_options(synchronize_session=False))
    return bool(result.rowcount)


def _values(message: WaitReport | WaitEnded) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__slots__ if name not in _NOT_COLUMNS}


def record_calls(*, conn_id: str, calls: Iterable[HourlyUsage], deadline_seconds: float = 3.0) -> None:
    """Add to the counts of each hour; a call that is reported twice counts twice.

    :param conn_id: the connection of the calls
    :param calls: since the last report of the same process
    :param deadline_seconds: how long to wait for the turn to write
    :raises JournalUnavailable: nothing was written
    """
    hours = [each for each in merged(calls) if not why_unfit(CallsRow, _times_of(each))]
    if not hours:
        return

    def work(session: Session) -> None:
        # The same order in all writers, so that two of them never wait for each other.
        for each in hours:
            key = {"conn_id": conn_id, "hour": each.hour}
            row = update(CallsRow).filter_by(**key)
            more = {"calls": CallsRow.calls + each.calls, "limited": CallsRow.limited + each.limited}
            known: Any = session.execute(row.values(**more).execution_options(synchronize_session=False))
            if not known.rowcount:
                # Another writer's insert at the same time makes this transaction fail, and it is retried.
                session.execute(insert(CallsRow).values(**key, calls=each.calls, limited=each.limited))
            if (left := each.left) is not None:
                # A statement of its own: MySQL would compare with the value that the same statement has just set.
                older = or_(CallsRow.told_at.is_(None), CallsRow.told_at <= left.told_at)
                usage = {name: getattr(left, name) for name in ("limits", "remaining", "reset_at", "told_at")}
                session.execute(row.where(older).values(**usage).execution_options(synchronize_session=False))

    try:
        write(work, deadline_seconds=deadline_seconds)
    except UnstorableError as error:
        log.warning("Counts of calls over connection %s are left out: %s", conn_id, error)


def _times_of(usage: HourlyUsage) -> dict[str, Any]:
    """Return the times of API usage, as columns."""
    left = usage.left
    return {"hour": usage.hour, **({"reset_at": left.reset_at, "told_at": left.told_at} if left is not None else {})}


def budget(session: Session, conn_ids: Sequence[str], now: datetime) -> list[ApiUsage]:
    """Return the API usage of each connection in the given order.

    :param conn_ids: the connections; all counts are 0 for those without a report within a day
    :param now: the time now
    """
    rows: dict[str, list[CallsRow]] = {conn_id: [] for conn_id in conn_ids}
    since = beginning_of_hour(now - _DAY)
    found = select(CallsRow).where(CallsRow.conn_id.in_(conn_ids), CallsRow.hour >= since).order_by(CallsRow.hour)
    for row in session.scalars(found):
        rows[row.conn_id].append(row)
    return [_budget(conn_id, rows[conn_id], now) for conn_id in conn_ids]


def calls_by_hour(session: Session, conn_id: str, now: datetime) -> Sequence[CallsRow]:
    """Return the calls of a connection in each hour of the last day, the latest first.

    :param now: the time now
    """
    since = beginning_of_hour(now - _DAY)
    query = select(CallsRow).where(CallsRow.conn_id == conn_id, CallsRow.hour >= since)
    return session.scalars(query.order_by(CallsRow.hour.desc())).all()


def _budget(conn_id: str, rows: list[CallsRow], now: datetime) -> ApiUsage:
    counted = ApiUsage(
        conn_id=conn_id,
        last_hour=_within(_HOUR, now, ((row.hour, row.calls) for row in rows)),
        last_day=_within(_DAY, now, ((row.hour, row.calls) for row in rows)),
        limited_last_day=_within(_DAY, now, ((row.hour, row.limited) for row in rows)),
    )
    with_limits = [(row.told_at, row) for row in rows if row.told_at is not None]
    if not with_limits:
        return counted
    told_at, last = max(with_limits, key=lambda each: each[0])
    return replace(counted, limits=last.limits, remaining=last.remaining, reset_at=last.reset_at, told_at=told_at)


def _within(span: timedelta, now: datetime, counts: Iterable[tuple[datetime, int]]) -> int:
    """Add up what was counted within a span; the hour in which it began counts by its share of the span, rounded up."""
    begin = now - span
    ends = ((hour + _HOUR, count) for hour, count in counts)
    return sum(math.ceil(count * min((end - begin) / _HOUR, 1)) for end, count in ends if end > begin)
