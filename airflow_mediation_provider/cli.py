"""``airflow mediation ...``: the commands and their arguments. ``commands`` implements them.

Every ``airflow`` command loads this module, so it imports nothing but Airflow's own description of commands.

Source: https://airflow.apache.org/docs/apache-airflow-providers/core-extensions/cli-commands.html
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Final

from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand, lazy_load_command

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand

_COMMANDS: Final = "airflow_mediation_provider.commands"
_MOST_HOURS: Final = 100_000


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours <= _MOST_HOURS:  # also rejects NaN
        raise ArgumentTypeError(f"it must be a number of hours from 0 to {_MOST_HOURS:,}, not {text!r}")
    return hours


CONN_ID: Final = Arg(
    ("--conn-id",), help="the connection, of type mediation (default: %(default)s)", default="mediation_default"
)
URL: Final = Arg(
    ("--url",), help="public address of Airflow, or full address of the callouts (default: base_url in section api)"
)
SINCE: Final = Arg(
    ("--since",),
    default="24h",
    help="start: ISO 8601 (UTC without a zone), or an age like 36h or 7d (default: %(default)s)",
)
SINCE_REQUIRED: Final = Arg(
    ("--since",),
    required=True,
    help="start: ISO 8601 (UTC without a zone), or an age like 36h or 7d",
)
UNTIL: Final = Arg(("--until",), help="end, in the same format (default: now)")
EVENT_CATEGORY: Final = Arg(
    ("--event-category",), help="read only this event category of the callout history (default: all of the tenant)"
)
OPEN_HOURS: Final = Arg(
    ("--open-hours",),
    type=_hours,
    default=6,
    help="check sessions that have not ended and had no update for this many hours; 0: none (default: %(default)s)",
)
JSON: Final = Arg(("--json",), action="store_true", help="print the result as JSON, and the progress to stderr")
TO_REVISION: Final = Arg(("--to-revision",), help="the revision to stop at (default: the last one)")
BACK_TO_REVISION: Final = Arg(
    ("--to-revision",), required=True, help="the revision to go back to; base: removes all tables"
)
YES: Final = Arg(("-y", "--yes"), action="store_true", help="do not ask")
OLDER_THAN: Final = Arg(
    ("--older-than",), type=float, required=True, metavar="DAYS", help="how many days to keep; at least 14"
)
ONLY_CONN_ID: Final = Arg(("--conn-id",), help="only of this connection (default: all)")
DAG: Final = Arg(("--dag",), metavar="DAG_ID", help="the Dag")
ASSET: Final = Arg(
    ("--asset",),
    metavar="URI",
    help="or all Dags on an asset, like mediation://mediation_default/meters/1001/COMPLETED",
)
DRY_RUN: Final = Arg(("--dry-run",), action="store_true", help="only print what would be done")


def get_cli_commands() -> list[CLICommand]:
    """Return the commands of this provider."""
    return [
        GroupCommand(
            name="mediation",
            help="Zuora Mediation: set up, check and repair the callouts",
            subcommands=(
                ActionCommand(
                    name="callout-template",
                    help="Print the callout template and the settings to paste into Zuora",
                    func=lazy_load_command(f"{_COMMANDS}.callouts.print_template"),
                    args=(CONN_ID, URL),
                ),
                ActionCommand(
                    name="send-test-callout",
                    help="Send a signed test callout, and check that it arrives",
                    description="Send a callout without credentials, which must be refused, and one with those of the "
                    "connection, which must then be in the journal. It belongs to no session and starts no Dag.",
                    func=lazy_load_command(f"{_COMMANDS}.callouts.send_test"),
                    args=(CONN_ID, URL),
                ),
                ActionCommand(
                    name="reconcile",
                    help="Add to the journal what Zuora's callout history has and the journal lacks",
                    description="Read Zuora's callout history, add the status changes that were not received to the "
                    "journal, and list sessions that seem never to end. Running it again is safe.",
                    func=lazy_load_command(f"{_COMMANDS}.maintenance.reconcile"),
                    args=(CONN_ID, SINCE, UNTIL, EVENT_CATEGORY, OPEN_HOURS, DRY_RUN, JSON),
                ),
                ActionCommand(
                    name="reparse",
                    help="Parse the stored unparsed callouts again",
                    description="Parse the stored unparsed callouts again: a later version of this package may be able "
                    "to. Their status changes take effect from then on.",
                    func=lazy_load_command(f"{_COMMANDS}.maintenance.reparse"),
                    args=(CONN_ID, DRY_RUN),
                ),
                ActionCommand(
                    name="replay",
                    help="Start the runs that a Dag missed because it was paused or did not exist yet",
                    description="Start a run for each session that reached the status on which a Dag is scheduled and "
                    "for which that Dag has no run. Other Dags are not affected, and running it again is safe.",
                    func=lazy_load_command(f"{_COMMANDS}.maintenance.replay"),
                    args=(DAG, ASSET, SINCE_REQUIRED, UNTIL, DRY_RUN),
                ),
                ActionCommand(
                    name="check-schedules",
                    help="List the Dags whose schedules read as if sessions started them, and that never start",
                    description="An asset of sessions in an ordinary schedule starts nothing, nor does an ordinary "
                    "schedule on an outlet of a Dag on sessions. Exits with 1 if there is such a Dag.",
                    func=lazy_load_command(f"{_COMMANDS}.maintenance.check_schedules"),
                    args=(),
                ),
                ActionCommand(
                    name="prune",
                    help="Delete old data from the journal: ended sessions with all that was stored of them",
                    func=lazy_load_command(f"{_COMMANDS}.maintenance.prune"),
                    args=(OLDER_THAN, ONLY_CONN_ID, DRY_RUN),
                ),
                GroupCommand(
                    name="db",
                    help="The journal's tables, which `airflow db migrate` creates with all others",
                    subcommands=(
                        ActionCommand(
                            name="migrate",
                            help="Create the tables, or migrate them to a revision",
                            func=lazy_load_command(f"{_COMMANDS}.db.migrate"),
                            args=(TO_REVISION,),
                        ),
                        ActionCommand(
                            name="downgrade",
                            help="Go back to an earlier revision, before an older version of the provider is installed",
                            func=lazy_load_command(f"{_COMMANDS}.db.downgrade"),
                            args=(BACK_TO_REVISION, YES),
                        ),
                        ActionCommand(
                            name="check",
                            help="Check whether the tables are those that this version needs",
                            func=lazy_load_command(f"{_COMMANDS}.db.check"),
                            args=(),
                        ),
                    ),
                ),
            ),
        )
    ]
