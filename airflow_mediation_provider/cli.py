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
            ),
        )
    ]
