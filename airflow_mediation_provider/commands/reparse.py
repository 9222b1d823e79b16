"""``airflow mediation reparse``: read callouts again that could not be read when they came."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.commands.command import command
from airflow_mediation_provider.commands.connection import callouts_of, connection_of
from airflow_mediation_provider.protocol.times import in_words

if TYPE_CHECKING:
    from argparse import Namespace

# What still cannot be read is listed so often; there may be thousands, all alike.
_MOST_LINES: Final = 20


@command
def reparse(args: Namespace) -> None:
    """Read them, and say what became of each."""
    from airflow_mediation_provider.journal.record import JournalUnavailable
    from airflow_mediation_provider.journal.reparse import reparse as read_again

    connection = connection_of(args.conn_id)
    counts: Counter[bool] = Counter()
    try:
        for each in read_again(callouts_of(connection), team=connection.team, dry_run=args.dry_run):
            entry = each.entry
            counts[entry is not None] += 1
            if entry is not None:
                change = entry.transition
                what = f"session {change.session_id} is {change.status}" if change else str(entry.kind)
                print(f"{in_words(each.observed_at)}: {what}", flush=True)
            elif counts[False] <= _MOST_LINES:
                print(f"{in_words(each.observed_at)}: still not readable: {each.error}", flush=True)
    except JournalUnavailable as error:
        raise SystemExit(f"{error}.") from None
    verb = "can be read now" if args.dry_run else "were read"
    print(f"{counts[True]:,} {verb}, {counts[False]:,} still cannot be.")
