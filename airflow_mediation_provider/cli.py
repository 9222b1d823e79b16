"""``airflow mediation ...``: which commands there are and what they take. What they do is in ``commands``.

Every ``airflow`` command loads this module, so it imports nothing but Airflow's own description of commands.

Source: https://airflow.apache.org/docs/apache-airflow-providers/core-extensions/cli-commands.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand, lazy_load_command

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand

_COMMANDS: Final = "airflow_mediation_provider.commands"

CONN_ID: Final = Arg(
    ("--conn-id",), help="the connection, of type mediation (default: %(default)s)", default="mediation_default"
)
TO_REVISION: Final = Arg(("--to-revision",), help="the revision to stop at (default: the last one)")
BACK_TO_REVISION: Final = Arg(
    ("--to-revision",), required=True, help="the revision to go back to; base: without any of the tables"
)
YES: Final = Arg(("-y", "--yes"), action="store_true", help="do not ask")
OLDER_THAN: Final = Arg(
    ("--older-than",), type=float, required=True, metavar="DAYS", help="how many days to keep; at least 14"
)
ONLY_CONN_ID: Final = Arg(("--conn-id",), help="of this connection alone (default: of all)")
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
                    args=(CONN_ID,),
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
