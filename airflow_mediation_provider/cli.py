"""``airflow mediation ...``: which commands there are and what they take. What they do is in ``commands``.

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
    if not 0 <= hours <= _MOST_HOURS:  # nor is what is no number
        raise ArgumentTypeError(f"it must be a number of hours from 0 to {_MOST_HOURS:,}, not {text!r}")
    return hours


CONN_ID: Final = Arg(
    ("--conn-id",), help="the connection, of type mediation (default: %(default)s)", default="mediation_default"
)
URL: Final = Arg(
    ("--url",), help="the public address of Airflow, or of the callouts in full (default: base_url in section api)"
)
SINCE: Final = Arg(
    ("--since",),
    default="24h",
    help="from when on: ISO 8601 (UTC where it has no zone), or how long ago, like 36h or 7d (default: %(default)s)",
)
SINCE_REQUIRED: Final = Arg(
    ("--since",),
    required=True,
    help="from when on: ISO 8601 (UTC where it has no zone), or how long ago, like 36h or 7d",
)
UNTIL: Final = Arg(("--until",), help="until when, written the same way (default: now)")
EVENT_CATEGORY: Final = Arg(
    ("--event-category",), help="read only this event category of the callout history (default: all of the tenant)"
)
OPEN_HOURS: Final = Arg(
    ("--open-hours",),
    type=_hours,
    default=6,
    help="look at sessions that have not ended, and of which nothing came for so many hours; 0: at none "
    "(default: %(default)s)",
)
JSON: Final = Arg(("--json",), action="store_true", help="print the result as JSON, and the progress beside it")
TO_REVISION: Final = Arg(("--to-revision",), help="the revision to stop at (default: the last one)")
BACK_TO_REVISION: Final = Arg(
    ("--to-revision",), required=True, help="the revision to go back to; base: without any of the tables"
)
YES: Final = Arg(("-y", "--yes"), action="store_true", help="do not ask")
OLDER_THAN: Final = Arg(
    ("--older-than",), type=float, required=True, metavar="DAYS", help="how many days to keep; at least 14"
)
ONLY_CONN_ID: Final = Arg(("--conn-id",), help="of this connection alone (default: of all)")
DAG: Final = Arg(("--dag",), metavar="DAG_ID", help="the DAG")
ASSET: Final = Arg(
    ("--asset",),
    metavar="URI",
    help="or all DAGs on an asset, like mediation://mediation_default/meters/1001/COMPLETED",
)
DRY_RUN: Final = Arg(("--dry-run",), action="store_true", help="only say what would be done")


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
                    help="Send a signed test callout, and prove that it arrives",
                    description="Send a callout without credentials, which must be refused, and one with those of the "
                    "connection, which must be in the journal then. It belongs to no session and starts no DAG.",
                    func=lazy_load_command(f"{_COMMANDS}.callouts.send_test"),
                    args=(CONN_ID, URL),
                ),
                ActionCommand(
                    name="reconcile",
                    help="Put into the journal what Zuora's callout history has and the journal lacks",
                    description="Read Zuora's callout history, put into the journal the changes that never came, and "
                    "say which sessions seem never to end. Running it again does no harm.",
                    func=lazy_load_command(f"{_COMMANDS}.reconcile.reconcile"),
                    args=(CONN_ID, SINCE, UNTIL, EVENT_CATEGORY, OPEN_HOURS, DRY_RUN, JSON),
                ),
                ActionCommand(
                    name="reparse",
                    help="Read callouts again that could not be read when they came",
                    description="Read callouts again that could not be read when they came: a later version of this "
                    "package may know more. What they say counts from then on.",
                    func=lazy_load_command(f"{_COMMANDS}.reparse.reparse"),
                    args=(CONN_ID, DRY_RUN),
                ),
                ActionCommand(
                    name="replay",
                    help="Start the runs that a DAG missed because it was paused, or not there yet",
                    description="Start a run for each session that came to the status which a DAG is scheduled on, and "
                    "for which that DAG has no run. Other DAGs are left alone, and running it again does no harm.",
                    func=lazy_load_command(f"{_COMMANDS}.replay.replay"),
                    args=(DAG, ASSET, SINCE_REQUIRED, UNTIL, DRY_RUN),
                ),
                ActionCommand(
                    name="prune",
                    help="Delete from the journal what is old: sessions that ended, with all that was told of them",
                    func=lazy_load_command(f"{_COMMANDS}.prune.prune"),
                    args=(OLDER_THAN, ONLY_CONN_ID, DRY_RUN),
                ),
                GroupCommand(
                    name="db",
                    help="The journal's tables, which `airflow db migrate` makes with all others",
                    subcommands=(
                        ActionCommand(
                            name="migrate",
                            help="Make the tables, or bring them to a revision",
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
                            help="Say whether the tables are those that this version needs",
                            func=lazy_load_command(f"{_COMMANDS}.db.check"),
                            args=(),
                        ),
                    ),
                ),
            ),
        )
    ]
