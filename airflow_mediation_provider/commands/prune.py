"""``airflow mediation prune``: delete what is old in the journal, or say what that would be."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.commands.command import command
from airflow_mediation_provider.journal.prune import old_sessions, oldest_to_keep
from airflow_mediation_provider.journal.prune import prune as prune_journal
from airflow_mediation_provider.journal.record import JournalUnavailable
from airflow_mediation_provider.protocol.pruning import Pruned
from airflow_mediation_provider.protocol.times import in_words

if TYPE_CHECKING:
    from argparse import Namespace

_SECONDS_BETWEEN_LINES: Final = 5.0


@command
def prune(args: Namespace) -> None:
    """Delete what is older than the given days, and say how far it is on the way."""
    try:
        before = oldest_to_keep(args.older_than)
        of = f" of connection {args.conn_id}" if args.conn_id else ""
        ended, going_on = old_sessions(before, conn_id=args.conn_id)
        print(f"Before {in_words(before)}{of}: {ended:,} sessions that ended, and {going_on:,} that did not and stay.")
        total, told_at = Pruned(), time.monotonic()
        for pruned in prune_journal(before, conn_id=args.conn_id, dry_run=args.dry_run):
            total += pruned
            if time.monotonic() - told_at >= _SECONDS_BETWEEN_LINES:
                print(f"{total.sessions:,} of {ended:,} sessions ...", flush=True)
                told_at = time.monotonic()
    except (ValueError, JournalUnavailable) as error:
        raise SystemExit(f"{error}.") from None
    print(f"{'Would delete' if args.dry_run else 'Deleted'} {total}.")
