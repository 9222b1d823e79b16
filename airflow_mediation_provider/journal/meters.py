"""The names of meters: of each the last one that a report had, of whichever kind that was.

A report without a name erases none, and an older one replaces none. A name that is known already is not written again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import select, tuple_, update

from airflow_mediation_provider.journal.tables import ListedRow, MeterRow, TransitionRow
from airflow_mediation_provider.journal.transaction import add

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session

# Reports of a meter that arrive out of order are about its newest sessions.
_NEWEST: Final = 20


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


def _was_named_later(session: Session, conn_id: str, meter_id: str, at: datetime) -> bool:
    of_meter = {"conn_id": conn_id, "meter_id": meter_id}
    newest = select(ListedRow.session_id).filter_by(**of_meter).order_by(ListedRow.begun_at.desc()).limit(_NEWEST)
    later = select(TransitionRow.id).filter_by(**of_meter)
    later = later.where(TransitionRow.session_id.in_(session.scalars(newest).all()), TransitionRow.observed_at > at)
    return session.scalar(later.where(TransitionRow.meter_name != "").limit(1)) is not None
