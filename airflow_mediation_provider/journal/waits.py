"""Who waits for which session, as the processes that wait report it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, update

from airflow_mediation_provider.journal.tables import WaitRow
from airflow_mediation_provider.journal.transaction import write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

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
    now = datetime.now(UTC)

    def work(session: Session) -> None:
        # In one order over all writers, so that two of them never wait for each other.
        for report in sorted(open, key=lambda each: each.id):
            values = _values(report, conn_id) | {"seen_at": now, "ended_at": None, "outcome": None}
            known: Any = session.execute(update(WaitRow).where(WaitRow.id == report.id).values(**values))
            if not known.rowcount:
                session.execute(insert(WaitRow).values(**values))
        for end in sorted(ended, key=lambda each: each.id):
            values = {"ended_at": end.ended_at, "outcome": end.outcome[:16]}
            if end.session_id is not None:
                values["session_id"] = end.session_id
            session.execute(update(WaitRow).where(WaitRow.id == end.id, WaitRow.conn_id == conn_id).values(**values))

    write(work, deadline_seconds=deadline_seconds)


def _values(report: WaitReport, conn_id: str) -> dict[str, Any]:
    return {"conn_id": conn_id, **{name: getattr(report, name) for name in report.__slots__}}
