"""Read callouts again that could not be read when they came: this package knew too little.

What they say takes the place of what could not be read, in one transaction with all that follows from it. The row
stays, with its notification id: what Zuora sends once more does not count twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from airflow_mediation_provider.journal.record import rewrite
from airflow_mediation_provider.journal.tables import TransitionRow
from airflow_mediation_provider.journal.transaction import read
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
        entries = {row.id: read_again(settings, row.body, row.observed_at) for row in rows}
        readable = {
            row_id: entry
            for row_id, entry in entries.items()
            if entry is not None and entry.kind is not EntryKind.UNPARSED
        }
        if readable and not dry_run:
            rewrite(readable, conn_id=settings.conn_id, team=team, deadline_seconds=_DEADLINE_SECONDS)
        for row in rows:
            error = "" if row.id in readable else str((entries[row.id] or row).body.get("error"))
            yield Reread(row.observed_at, readable.get(row.id), error)


def _unparsed(conn_id: str, after: int) -> list[TransitionRow]:
    rows = (
        select(TransitionRow)
        .where(TransitionRow.conn_id == conn_id, TransitionRow.kind == EntryKind.UNPARSED, TransitionRow.id > after)
        .order_by(TransitionRow.id)
        .limit(_BATCH)
    )
    return read(lambda session: list(session.scalars(rows)))
