"""Who waits for which session, as the processes that wait report it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow import settings
from sqlalchemy import insert, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from airflow_mediation_provider.journal.locking import writers_turn
from airflow_mediation_provider.journal.record import JournalUnavailable, unavailable
from airflow_mediation_provider.journal.tables import WaitRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_mediation_provider.protocol.feed import WaitEnded, WaitReport


def record_waits(
    *,
    conn_id: str,
    open: Sequence[WaitReport] = (),  # noqa: A002  # as in the request
    ended: Sequence[WaitEnded] = (),
    deadline_seconds: float = 3.0,
) -> None:
    """Keep what processes report of their waits; telling the same again does no harm.

    A wait that is not reported any more goes out of date by its ``seen_at``: its process may have died.

    :param conn_id: the connection that they wait over
    :param open: waits that began, or that go on
    :param ended: waits that ended
    :param deadline_seconds: how long to wait for one's turn to write
    :raises JournalUnavailable: nothing was written
    """
    if not open and not ended:
        return
    engine = settings.engine
    if engine is None or settings.NonScopedSession is None:
        raise JournalUnavailable("Airflow's database is not set up in this process")
    now = datetime.now(UTC)
    try:
        with writers_turn(engine.url, time.monotonic() + deadline_seconds), settings.NonScopedSession() as session:
            # In one order over all writers, so that two of them never wait for each other.
            for report in sorted(open, key=lambda each: each.id):
                values = _values(report, conn_id) | {"seen_at": now, "ended_at": None, "outcome": None}
                known: Any = session.execute(update(WaitRow).where(WaitRow.id == report.id).values(**values))
                if not known.rowcount:
                    session.execute(insert(WaitRow).values(**values))
            for end in sorted(ended, key=lambda each: each.id):
                session.execute(
                    update(WaitRow)
                    .where(WaitRow.id == end.id, WaitRow.conn_id == conn_id)
                    .values(ended_at=end.ended_at, outcome=end.outcome[:16])
                )
            session.commit()
    except TimeoutError as error:
        raise JournalUnavailable(f"the waits could not be written: {error}") from error
    except (DBAPIError, PoolTimeoutError) as error:
        raise unavailable(error) from error


def _values(report: WaitReport, conn_id: str) -> dict[str, Any]:
    return {"conn_id": conn_id, **{name: getattr(report, name) for name in report.__slots__}}
