"""Meters: the last name that a report of each had, its newest sessions, and what is usual of them.

A report without a name erases none, and an older one replaces none. A name that is known already is not written again.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Integer, bindparam, select, tuple_, union_all, update

from airflow_mediation_provider.journal.queries import distinct_values
from airflow_mediation_provider.journal.tables import ListedRow, MeterRow, TransitionRow
from airflow_mediation_provider.journal.transaction import add
from airflow_mediation_provider.protocol.sessions.usual import NEWEST, PastSession, Tempo

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy import Executable, Select
    from sqlalchemy.orm import Session

# Reports of a meter that arrive out of order are about its newest sessions.
_NEWEST: Final = 20
# So many meters share a statement, which is built once for each number: building takes longer than running.
_OF_STATEMENT: Final = (1, 5, 20)
# A process keeps what is usual of so many meters.
_MOST_KEPT: Final = 1000
# A writer sets the time of a change before its commit, by its own clock.
_COMMITTED_WITHIN: Final = timedelta(seconds=15)
# A deleted session and the verdict of a task leave the time of the last change, so what was read this long ago is read
# again, as many meters at a time as share a statement.
_READ_AGAIN_AFTER: Final = timedelta(minutes=1)
# After this time without a request the changes would be many.
_UNASKED_FOR: Final = timedelta(minutes=10)
# SQLite runs each part of a statement for no meter in no time.
_NO_METER: Final = ("", "", "")


class RunsOfMeter(NamedTuple):
    """The sessions of one run type of a meter."""

    conn_id: str
    meter_id: str
    run_type: str


class ReportedName(NamedTuple):
    """A name of a meter, and when the report that has it was received."""

    received_at: datetime
    name: str


def store_names(session: Session, conn_id: str, reported: Mapping[str, ReportedName]) -> None:
    """Store the names that differ from what is known, in the transaction of the caller.

    :param reported: meter id -> the latest of some reports
    """
    if not reported:
        return
    columns = (MeterRow.meter_id, MeterRow.received_at, MeterRow.name)
    of_meters = select(*columns).where(MeterRow.conn_id == conn_id, MeterRow.meter_id.in_(reported))
    known = {meter_id: ReportedName(at, name) for meter_id, at, name in session.execute(of_meters)}
    # The same order in all writers, so that two of them never wait for each other.
    for meter_id, new in sorted(reported.items()):
        old = known.get(meter_id)
        if old is not None and (old.name == new.name or old.received_at >= new.received_at):
            continue
        key = {"conn_id": conn_id, "meter_id": meter_id}
        if old is None and add(session, MeterRow, {**key, **new._asdict()}):
            continue
        # The known name may have been reported again since it was stored.
        if not _was_named_later(session, conn_id, meter_id, new.received_at):
            newer = update(MeterRow).filter_by(**key).where(MeterRow.received_at < new.received_at)
            session.execute(newer.values(**new._asdict()).execution_options(synchronize_session=False))


def meter_names(session: Session, meters: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the last known names of some meters.

    :param meters: connection and meter id of each
    """
    if not meters:
        return {}
    key = (MeterRow.conn_id, MeterRow.meter_id)
    rows = session.execute(select(*key, MeterRow.name).where(tuple_(*key).in_(meters)))
    return {(conn_id, meter_id): name for conn_id, meter_id, name in rows}


def tempos(session: Session, runs: Collection[RunsOfMeter], *, newest: int = NEWEST) -> dict[RunsOfMeter, Tempo]:
    """Return what is usual of the sessions of some meters.

    :param newest: so many of the newest sessions are read of each
    """
    past: dict[RunsOfMeter, list[PastSession]] = defaultdict(list)
    wanted = list(dict.fromkeys(runs))
    for start in range(0, len(wanted), _OF_STATEMENT[-1]):
        chunk = wanted[start : start + _OF_STATEMENT[-1]]
        size = next(size for size in _OF_STATEMENT if size >= len(chunk))
        values: dict[str, Any] = {"newest": newest}
        for number, of in enumerate([*chunk, *[_NO_METER] * (size - len(chunk))]):
            values |= {f"{name}{number}": value for name, value in zip(RunsOfMeter._fields, of, strict=True)}
        for row in session.execute(_newest(size), values):
            ended_at = row.best_ended_at if row.best_ended else None
            one = PastSession(row.session_id, row.begun_at, ended_at, row.best_status, row.best_certain)
            past[RunsOfMeter(row.conn_id, row.meter_id, row.run_type)].append(one)
    for each in past.values():
        # The rows of the parts of a statement may come in any order.
        each.sort(key=lambda one: (one.begun_at, one.session_id), reverse=True)
    return {of: Tempo.of(past[of]) for of in wanted}


class Tempos:
    """What is usual of meters, kept in this process until a session of the meter changes, or for about a minute; safe
    between threads.

    :param most: of so many meters
    :param clock: the time now
    """

    def __init__(self, most: int = _MOST_KEPT, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._most, self._clock = most, clock
        # With the time at which each was read; the oldest first.
        self._kept: dict[RunsOfMeter, tuple[datetime, Tempo]] = {}
        self._checked_at = clock()
        self._lock = threading.Lock()

    def of(self, session: Session, runs: Collection[RunsOfMeter]) -> dict[RunsOfMeter, Tempo]:
        """Return what is usual of the sessions of some meters."""
        # One request at a time: the next one finds what this one reads.
        with self._lock:
            now = self._clock()
            self._drop_changed(session, now)
            wanted = set(runs)
            old = (of for of, (at, _) in self._kept.items() if of in wanted and at < now - _READ_AGAIN_AFTER)
            again = [*islice(old, _OF_STATEMENT[-1])]
            missing = [of for of in runs if of not in self._kept]
            for of, tempo in tempos(session, [*again, *missing]).items():
                self._kept.pop(of, None)
                self._kept[of] = now, tempo
            found = {of: self._kept[of][1] for of in runs}
            for of in [*islice(self._kept, max(len(self._kept) - self._most, 0))]:
                del self._kept[of]
            return found

    def _drop_changed(self, session: Session, now: datetime) -> None:
        if self._checked_at < now - _UNASKED_FOR:
            self._kept.clear()
        elif self._kept:
            changes = session.execute(_CHANGED_METERS, {"since": self._checked_at - _COMMITTED_WITHIN})
            changed = {tuple(row) for row in changes}
            self._kept = {of: kept for of, kept in self._kept.items() if (of.conn_id, of.meter_id) not in changed}
        # Not if the database refused: what changed is asked for again.
        self._checked_at = now


# Each row of them: for distinct ones SQLite would read all sessions in the order of their meters.
_CHANGED_METERS: Final = select(ListedRow.conn_id, ListedRow.meter_id).where(ListedRow.updated_at >= bindparam("since"))


def meters_of(session: Session, conn_id: str, most: int) -> list[str]:
    """Return the first meters of a connection, by their ids: step by step through an index."""
    of_connection = ListedRow.conn_id == conn_id
    return list(session.scalars(distinct_values(ListedRow.meter_id, most=most, where=of_connection)))


@cache
def _newest(size: int) -> Executable:
    """Return one statement for the newest sessions of so many meters."""
    return union_all(*(select(_newest_of(number).subquery()) for number in range(size)))


def _newest_of(number: int) -> Select[Any]:
    row = ListedRow
    columns: tuple[Any, ...] = (row.conn_id, row.meter_id, row.run_type, row.session_id, row.begun_at)
    columns += (row.best_status, row.best_certain, row.best_ended, row.best_ended_at)
    newest = select(*columns).where(
        *(getattr(row, name) == bindparam(f"{name}{number}") for name in RunsOfMeter._fields)
    )
    return newest.order_by(row.begun_at.desc(), row.session_id.desc()).limit(bindparam("newest", type_=Integer))


def _was_named_later(session: Session, conn_id: str, meter_id: str, at: datetime) -> bool:
    of_meter = {"conn_id": conn_id, "meter_id": meter_id}
    newest = select(ListedRow.session_id).filter_by(**of_meter).order_by(ListedRow.begun_at.desc()).limit(_NEWEST)
    later = select(TransitionRow.id).filter_by(**of_meter)
    later = later.where(TransitionRow.session_id.in_(session.scalars(newest).all()), TransitionRow.observed_at > at)
    return session.scalar(later.where(TransitionRow.meter_name != "").limit(1)) is not None
