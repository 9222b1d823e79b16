"""What each command begins with: Airflow notes it in its audit log, and knows the providers' settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.utils.cli import action_cli
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    Command = Callable[[Namespace], None]


def command(function: Command) -> Command:
    """Make a function a command; one that needs no tables of Airflow, and says so itself where it needs ours."""
    made: Command = action_cli(check_db=False)(providers_configuration_loaded(function))
    return made
