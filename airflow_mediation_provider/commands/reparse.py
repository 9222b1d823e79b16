"""``airflow mediation reparse``: read callouts again that could not be read when they came."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.commands.command import command
from airflow_mediation_provider.commands.connection import callouts_of, connection_of
from airflow_mediation_provider.protocol.times import in_words

if TYPE_CHECKING:
    from argparse import Namespace

# What still cannot be read is listed so often; there may be thousands, all alike.
_MOST_LINES: Final = 20
_SECONDS_BETWEEN_LINES: Final = 5.0


@command
def reparse(args: Namespace) -> None:
    """Read them, and say what became of each."""
    from airflow_mediation_provider import metrics
    from airflow_mediation_provider.journal.record import JournalUnavailable
    from airflow_mediation_provider.journal.reparse import reparse as read_again

    metrics.set_up()
    connection = connection_of(args.conn_id)
    read = unreadable = 0
    told_at = time.monotonic()
    try:
        for each in read_again(callouts_of(connection), team=connection.team, dry_run=args.dry_run):
            if each.entry is None:
                unreadable += 1
                line = f"still not readable: {each.error}" if unreadable <= _MOST_LINES else ""
            else:
                read += 1
                change = each.entry.transition
                line = f"session {change.session_id} is {change.status}" if change else str(each.entry.kind)
            if line:
                print(f"{in_words(each.observed_at)}: {line}", flush=True)
            elif time.monotonic() - told_at >= _SECONDS_BETWEEN_LINES:
                print(f"{unreadable:,} cannot be read ...", flush=True)
            else:
                continue
            told_at = time.monotonic()
    except JournalUnavailable as error:
        raise SystemExit(f"{error}.") from None
    if not read + unreadable:
        print(f"The journal holds no callout of connection {args.conn_id} that could not be read.")
    else:
        print(f"{'Can read' if args.dry_run else 'Read'} {read:,} of {read + unreadable:,}.")
