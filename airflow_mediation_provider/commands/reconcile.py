"""``airflow mediation reconcile``: put into the journal what the callout history has and the journal lacks."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_mediation_provider.commands.command import command
from airflow_mediation_provider.commands.connection import callouts_of, connection_of
from airflow_mediation_provider.commands.times import time_of

if TYPE_CHECKING:
    from argparse import Namespace

    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.protocol.reconcile import ReconcileReply, ReconcileRequest


@command
def reconcile(args: Namespace) -> None:
    """Carry out one pass, and print what was missing."""
    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.journal.record import JournalUnavailable
    from airflow_mediation_provider.protocol.errors import MediationError
    from airflow_mediation_provider.reconciliation import Task
    from airflow_mediation_provider.reconciliation import reconcile as carry_out

    now = datetime.now(UTC)
    since = time_of("--since", args.since, now)
    until = time_of("--until", args.until, now) if args.until else now
    if until <= since:
        raise SystemExit("--until must be after --since.")
    connection = connection_of(args.conn_id)
    settings = callouts_of(connection)
    task = Task(
        since=since,
        until=until,
        event_category=args.event_category,
        open_for=timedelta(hours=args.open_hours) if args.open_hours else None,
        dry_run=args.dry_run,
    )
    # With --json, the output is for a program: what is for people goes beside it.
    out = sys.stderr if args.json else sys.stdout
    try:
        with MediationHook(args.conn_id) as hook:
            found = carry_out(
                hook, settings, _Database(connection), task, lambda line: print(line, file=out, flush=True)
            )
    except (MediationError, JournalUnavailable) as error:
        raise SystemExit(str(error)) from None
    finally:
        _keep_calls(args.conn_id)
    if args.json:
        print(json.dumps(found.to_dict()))


def _keep_calls(conn_id: str) -> None:
    """Count the calls that the pass took; that they could not be kept is no reason to fail."""
    from airflow_mediation_provider.hooks.calls import reported
    from airflow_mediation_provider.journal.calls import record_calls
    from airflow_mediation_provider.journal.transaction import JournalUnavailable

    with suppress(JournalUnavailable), reported(conn_id) as calls:
        record_calls(conn_id=conn_id, calls=calls)


class _Database:
    """The journal, as one who has the database reaches it."""

    def __init__(self, connection: MediationConnection) -> None:
        self._connection = connection

    def reconcile(self, request: ReconcileRequest) -> ReconcileReply:
        from airflow_mediation_provider import metrics
        from airflow_mediation_provider.journal.reconcile import compare
        from airflow_mediation_provider.journal.record import record
        from airflow_mediation_provider.protocol.reconcile import ReconcileReply

        lost, silent = compare(request, conn_id=self._connection.conn_id)
        if not request.dry_run:
            metrics.set_up()
            record(lost, conn_id=self._connection.conn_id, team=self._connection.team, deadline_seconds=60.0)
        return ReconcileReply(missing=tuple(str(entry.notification_id) for entry in lost), open=tuple(silent))
