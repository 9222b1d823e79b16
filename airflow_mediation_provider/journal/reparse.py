"""Read callouts again that could not be read when they came: the settings were wrong, or this package knew too little.

What they say becomes rows of their own, by the way of all that is told; then the old rows are marked. They stay,
because they know the notification ids: what Zuora sends once more must not count twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sqlalchemy import select, update

from airflow_mediation_provider.journal.record import record
from airflow_mediation_provider.journal.tables import TransitionRow
from airflow_mediation_provider.journal.transaction import read, write
from airflow_mediation_provider.protocol.callout import read_again
from airflow_mediation_provider.protocol.entry import Entry, EntryKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from airflow_mediation_provider.protocol.callout_settings import CalloutSettings

_BATCH: Final = 100
_DEADLINE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Reread:
    """One callout that could not be read.

    :param observed_at: when it came
    :param entry: what it says now; ``None``: nobody can read it still
    :param error: why not
    """

    observed_at: datetime
    entry: Entry | None
    error: str = ""


def reparse(settings: CalloutSettings, *, team: str | None = None, dry_run: bool = False) -> Iterator[Reread]:
    """Read the unreadable callouts of a connection again, the oldest first, and yield each when it is durable.

    :param settings: of the connection
    :param team: the connection's team, where Airflow has teams
    :param dry_run: change nothing
    :raises JournalUnavailable: the journal cannot be read or written; what was yielded is durable
    """
    after = 0
    while rows := _unparsed(settings.conn_id, after):
        after = rows[-1].id
        read = {row.id: (row, read_again(settings, row.body, row.observed_at)) for row in rows}
        readable = {
            # Named after the row, so that doing it again after a crash tells nothing twice.
            row_id: replace(entry, notification_id=f"reparse:{row_id}")
            for row_id, (_, entry) in read.items()
            if entry is not None and entry.kind is not EntryKind.UNPARSED
        }
        if readable and not dry_run:
            record(list(readable.values()), conn_id=settings.conn_id, team=team, deadline_seconds=_DEADLINE_SECONDS)
            _mark(list(readable))
        for row_id, (row, entry) in read.items():
            error = "" if row_id in readable else str((entry.body if entry else row.body).get("error"))
            yield Reread(row.observed_at, readable.get(row_id), error)


def _unparsed(conn_id: str, after: int) -> list[TransitionRow]:
    rows = (
        select(TransitionRow)
        .where(TransitionRow.conn_id == conn_id, TransitionRow.kind == EntryKind.UNPARSED, TransitionRow.id > after)
        .order_by(TransitionRow.id)
        .limit(_BATCH)
    )
    return read(lambda session: list(session.scalars(rows)))


def _mark(row_ids: list[int]) -> None:
    marked = update(TransitionRow).where(TransitionRow.id.in_(row_ids)).values(kind=str(EntryKind.REPARSED))
    write(lambda session: session.execute(marked), deadline_seconds=_DEADLINE_SECONDS)
