"""``airflow mediation prune``, ``reconcile``, ``reparse``, ``replay`` and ``check-schedules``: journal and Dag runs."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.commands import callouts_of, command, connection_of, sentence, time_of
from airflow_mediation_provider.journal.prune import old_sessions, oldest_to_keep
from airflow_mediation_provider.journal.prune import prune as prune_journal
from airflow_mediation_provider.journal.writer import JournalUnavailable
from airflow_mediation_provider.protocol.maintenance import Pruned
from airflow_mediation_provider.protocol.times import in_words
from airflow_mediation_provider.tasks.maintenance import Progress

if TYPE_CHECKING:
    from argparse import Namespace

    from airflow_mediation_provider.api_server.connections import MediationConnection
    from airflow_mediation_provider.journal.replay import Replayed
    from airflow_mediation_provider.protocol.maintenance import ReconcileReply, ReconcileRequest

# Callouts that still cannot be parsed are listed up to this number; there may be thousands, all alike.
_MOST_LINES: Final = 20


@command
def prune(args: Namespace) -> None:
    """Delete data older than the given days, and print the progress."""
    try:
        before = oldest_to_keep(args.older_than)
        of = f" of connection {args.conn_id}" if args.conn_id else ""
        ended, going_on = old_sessions(before, conn_id=args.conn_id)
        print(f"Before {in_words(before)}{of}: {ended:,} ended sessions, and {going_on:,} without an end, which stay.")
        total, progress = Pruned(), Progress(partial(print, flush=True))
        for pruned in prune_journal(before, conn_id=args.conn_id, dry_run=args.dry_run):
            total += pruned
            progress.on_the_way(f"{total.sessions:,} of {ended:,} sessions ...")
    except (ValueError, JournalUnavailable) as error:
        raise SystemExit(sentence(error)) from None
    print(f"{'Would delete' if args.dry_run else 'Deleted'} {total}.")


@command
def reconcile(args: Namespace) -> None:
    """Carry out one pass, and print what was missing."""
    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.journal.writer import JournalUnavailable
    from airflow_mediation_provider.protocol.zuora.errors import MediationError
    from airflow_mediation_provider.tasks.maintenance import Task
    from airflow_mediation_provider.tasks.maintenance import reconcile as carry_out

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
    # With --json, stdout is for a program: messages for people go to stderr.
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
    """Count the calls of the pass; an error in that does not fail the command."""
    from airflow_mediation_provider.hooks.api_usage import reported
    from airflow_mediation_provider.journal.task_reports import record_calls
    from airflow_mediation_provider.journal.transaction import JournalUnavailable

    with suppress(JournalUnavailable), reported(conn_id) as calls:
        record_calls(conn_id=conn_id, calls=calls)


class _Database:
    """The journal, for a process with access to the database."""

    def __init__(self, connection: MediationConnection) -> None:
        self._connection = connection

    def reconcile(self, request: ReconcileRequest) -> ReconcileReply:
        from airflow_mediation_provider import metrics
        from airflow_mediation_provider.journal.queries import compare
        from airflow_mediation_provider.journal.writer import record
        from airflow_mediation_provider.protocol.maintenance import ReconcileReply

        lost, silent = compare(request, conn_id=self._connection.conn_id)
        if not request.dry_run:
            metrics.set_up()
            record(lost, conn_id=self._connection.conn_id, team=self._connection.team, deadline_seconds=60.0)
        return ReconcileReply(missing=tuple(str(entry.notification_id) for entry in lost), open=tuple(silent))


@command
def reparse(args: Namespace) -> None:
    """Parse the stored unparsed callouts again, and print the result of each."""
    from airflow_mediation_provider import metrics
    from airflow_mediation_provider.journal.writer import JournalUnavailable
    from airflow_mediation_provider.journal.writer import reparse as read_again

    metrics.set_up()
    connection = connection_of(args.conn_id)
    read = unreadable = 0
    progress = Progress(partial(print, flush=True))
    try:
        for each in read_again(callouts_of(connection), team=connection.team, dry_run=args.dry_run):
            if each.entry is None:
                unreadable += 1
                line = f"still cannot be parsed: {each.error}" if unreadable <= _MOST_LINES else ""
            else:
                read += 1
                change = each.entry.transition
                line = f"session {change.session_id} is {change.status}" if change else str(each.entry.kind)
            if line:
                progress.report(f"{in_words(each.observed_at)}: {line}")
            else:
                progress.on_the_way(f"{unreadable:,} cannot be parsed ...")
    except JournalUnavailable as error:
        raise SystemExit(sentence(error)) from None
    if not read + unreadable:
        print(f"The journal has no unparsed callouts of connection {args.conn_id}.")
    else:
        print(f"{'Can parse' if args.dry_run else 'Parsed'} {read:,} of {read + unreadable:,}.")


@command
def replay(args: Namespace) -> None:
    """Start the missing runs, and print them for each Dag."""
    from airflow_mediation_provider.journal.asset_events import UnknownAirflowError
    from airflow_mediation_provider.journal.replay import replay as start_missing
    from airflow_mediation_provider.journal.writer import JournalUnavailable

    if (args.dag is None) == (args.asset is None):
        raise SystemExit("Give either --dag or --asset.")
    now = datetime.now(UTC)
    since = time_of("--since", args.since, now)
    until = time_of("--until", args.until, now) if args.until else now
    done = 0
    try:
        for each in start_missing(dag_id=args.dag, uri=args.asset, since=since, until=until, dry_run=args.dry_run):
            done += not each.refused
            _print_result(each, since, until, dry_run=args.dry_run)
    except (ValueError, JournalUnavailable, UnknownAirflowError) as error:
        raise SystemExit(sentence(error)) from None
    if not done:
        raise SystemExit(1)


@command
def check_schedules(args: Namespace) -> None:
    """Print the Dags that sessions never start, and exit with 1 if there is one."""
    from airflow_mediation_provider.journal.transaction import JournalUnavailable, read
    from airflow_mediation_provider.journal.triggered_runs import never_started

    del args
    try:
        found = read(never_started)
    except JournalUnavailable as error:
        raise SystemExit(sentence(error)) from None
    for each in found:
        print(f"Sessions of connection {each.conn_id} never start the Dag {each.dag_id}: {each.because}.")
    if found:
        raise SystemExit(1)
    print("Sessions start each Dag whose schedule names them.")


def _print_result(replayed: Replayed, since: datetime, until: datetime, *, dry_run: bool) -> None:
    if replayed.refused:
        print(f"{replayed.dag_id}: nothing is started, because {replayed.refused}.")
        return
    missed, known, span = len(replayed.missed), len(replayed.known), f"from {in_words(since)} until {in_words(until)}"
    news = f"{missed:,} {'would get one' if dry_run else 'get one now'}{':' if missed else '.'}"
    print(f"{replayed.dag_id}: {_sessions(missed + known)} {span}; {known:,} have a run, {news}")
    for each in replayed.missed:
        print(f"  {in_words(each.at)}  {each.key}  {each.uri}")


def _sessions(number: int) -> str:
    return f"{number:,} session{'' if number == 1 else 's'}"
