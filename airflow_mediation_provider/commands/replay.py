"""``airflow mediation replay``: start the runs that a DAG missed, because it was paused or not there yet."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_mediation_provider.commands.command import command
from airflow_mediation_provider.commands.times import time_of
from airflow_mediation_provider.protocol.times import in_words

if TYPE_CHECKING:
    from argparse import Namespace

    from airflow_mediation_provider.journal.replay import Replayed


@command
def replay(args: Namespace) -> None:
    """Start what is missing, and say of each DAG what that was."""
    from airflow_mediation_provider.journal.emission import UnknownAirflowError
    from airflow_mediation_provider.journal.record import JournalUnavailable
    from airflow_mediation_provider.journal.replay import replay as start_missing

    if (args.dag is None) == (args.asset is None):
        raise SystemExit("Give either --dag or --asset.")
    now = datetime.now(UTC)
    since = time_of("--since", args.since, now)
    until = time_of("--until", args.until, now) if args.until else now
    done = 0
    try:
        for each in start_missing(dag_id=args.dag, uri=args.asset, since=since, until=until, dry_run=args.dry_run):
            done += not each.refused
            _tell(each, since, until, dry_run=args.dry_run)
    except (ValueError, JournalUnavailable, UnknownAirflowError) as error:
        text = str(error)
        raise SystemExit(f"{text[:1].upper()}{text[1:]}.") from None
    if not done:
        raise SystemExit(1)


def _tell(replayed: Replayed, since: datetime, until: datetime, *, dry_run: bool) -> None:
    if replayed.refused:
        print(f"{replayed.dag_id}: nothing is started, because {replayed.refused}.")
        return
    missed, span = len(replayed.missed), f"from {in_words(since)} until {in_words(until)}"
    news = f"{missed:,} {'would get one' if dry_run else 'get one now'}{':' if missed else '.'}"
    print(f"{replayed.dag_id}: {_sessions(missed + replayed.known)} {span}; {replayed.known:,} have a run, {news}")
    for each in replayed.missed:
        print(f"  {in_words(each.at)}  {each.key}  {each.uri}")


def _sessions(number: int) -> str:
    return f"{number:,} session{'' if number == 1 else 's'}"
