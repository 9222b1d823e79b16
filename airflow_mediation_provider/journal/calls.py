"""How many calls were made to Zuora, hour by hour, as the processes that made them report it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import insert, or_, select, update

from airflow_mediation_provider.journal.tables import CallsRow
from airflow_mediation_provider.journal.transaction import write
from airflow_mediation_provider.protocol.budget import Budget
from airflow_mediation_provider.protocol.calls import beginning_of_hour, merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.calls import HourlyCalls

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)


def record_calls(*, conn_id: str, calls: Iterable[HourlyCalls], deadline_seconds: float = 3.0) -> None:
    """Add to what is known of each hour; what is told twice counts twice.

    :param conn_id: the connection that they went over
    :param calls: since the last report of the same process
    :param deadline_seconds: how long to wait for one's turn to write
    :raises JournalUnavailable: nothing was written
    """
    hours = merged(calls)
    if not hours:
        return

    def work(session: Session) -> None:
        # In one order over all writers, so that two of them never wait for each other.
        for each in hours:
            key = {"conn_id": conn_id, "hour": each.hour}
            row = update(CallsRow).filter_by(**key)
            more = {"calls": CallsRow.calls + each.calls, "limited": CallsRow.limited + each.limited}
            known: Any = session.execute(row.values(**more).execution_options(synchronize_session=False))
            if not known.rowcount:
                # Who inserts it at the same time makes this transaction fail, and be tried again.
                session.execute(insert(CallsRow).values(**key, calls=each.calls, limited=each.limited))
            if (left := each.left) is not None:
                # Of another statement: MySQL would compare with what the same one has just set.
                older = or_(CallsRow.told_at.is_(None), CallsRow.told_at <= left.told_at)
                said = {name: getattr(left, name) for name in ("limits", "remaining", "reset_at", "told_at")}
                session.execute(row.where(older).values(**said).execution_options(synchronize_session=False))

    write(work, deadline_seconds=deadline_seconds)


def budget(session: Session, conn_ids: Sequence[str], now: datetime) -> list[Budget]:
    """Return how the budget of calls stands, of each connection in the given order.

    :param conn_ids: the connections; of those that nobody reported within a day, all counts are 0
    :param now: the time now
    """
    rows: dict[str, list[CallsRow]] = {conn_id: [] for conn_id in conn_ids}
    since = beginning_of_hour(now - _DAY)
    found = select(CallsRow).where(CallsRow.conn_id.in_(conn_ids), CallsRow.hour >= since).order_by(CallsRow.hour)
    for row in session.scalars(found):
        rows[row.conn_id].append(row)
    return [_budget(conn_id, rows[conn_id], now) for conn_id in conn_ids]


def _budget(conn_id: str, rows: list[CallsRow], now: datetime) -> Budget:
    counted = Budget(
        conn_id=conn_id,
        last_hour=_within(_HOUR, now, ((row.hour, row.calls) for row in rows)),
        last_day=_within(_DAY, now, ((row.hour, row.calls) for row in rows)),
        limited_last_day=_within(_DAY, now, ((row.hour, row.limited) for row in rows)),
    )
    told = [(row.told_at, row) for row in rows if row.told_at is not None]
    if not told:
        return counted
    told_at, last = max(told, key=lambda each: each[0])
    return replace(counted, limits=last.limits, remaining=last.remaining, reset_at=last.reset_at, told_at=told_at)


def _within(span: timedelta, now: datetime, counts: Iterable[tuple[datetime, int]]) -> int:
    """Add up what was counted within a span; the hour in which it began counts by its share of the span, rounded up."""
    begin = now - span
    ends = ((hour + _HOUR, count) for hour, count in counts)
    return sum(math.ceil(count * min((end - begin) / _HOUR, 1)) for end, count in ends if end > begin)
