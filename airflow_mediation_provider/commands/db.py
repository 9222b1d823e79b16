"""``airflow mediation db ...``: migrate, downgrade and check the journal's tables alone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow.utils.db import DBLocks, create_global_lock
from airflow.utils.session import create_session
from alembic.util import CommandError
from sqlalchemy.exc import OperationalError

from airflow_mediation_provider.commands.command import command
from airflow_mediation_provider.journal.manager import MediationDBManager
from airflow_mediation_provider.journal.transaction import said

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator


@command
def migrate(args: Namespace) -> None:
    """Make the tables, or bring them to a revision; as ``airflow db migrate`` does with all tables."""
    with _manager() as manager:
        manager.upgradedb(to_revision=args.to_revision)
        print(f"The journal's tables are at revision {_revision(manager)}.")


@command
def downgrade(args: Namespace) -> None:
    """Go back to an earlier revision, which ``airflow db downgrade`` does for no provider."""
    lost = "all that the journal knows" if args.to_revision == "base" else "what that revision has no place for"
    question = f"Going back to revision {args.to_revision} deletes {lost}. Proceed? (y/n) "
    if not (args.yes or _agreed(question)):
        raise SystemExit("Nothing was changed.")
    with _manager() as manager:
        manager.downgrade(args.to_revision)
        print(f"The journal's tables are at revision {_revision(manager)}.")


@command
def check(_args: Namespace) -> None:
    """Say whether the tables are those that this version works with; the exit code says it too."""
    with _explained(), create_session() as session:
        manager = MediationDBManager(session)
        wanted = ", ".join(manager.get_script_object().get_heads())
        if not manager.check_migration():
            raise SystemExit(
                f"The journal's tables are at revision {_revision(manager)}, and this version of the provider needs "
                f"{wanted}: run `airflow db migrate`, or `airflow mediation db migrate` for them alone."
            )
        print(f"The journal's tables are at revision {wanted}, as this version needs them.")


@contextmanager
def _manager() -> Iterator[MediationDBManager]:
    """Give the manager while nobody else migrates Airflow's database."""
    with (
        _explained(),
        create_session() as session,
        create_global_lock(session=session, lock=DBLocks.MIGRATIONS),
    ):
        yield MediationDBManager(session)


@contextmanager
def _explained() -> Iterator[None]:
    """Say in a sentence what stands in the way."""
    try:
        yield
    except CommandError as error:
        raise SystemExit(f"{error}.") from None
    except OperationalError as error:
        raise SystemExit(f"Airflow's database gave an error: {said(error)}.") from None


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() == "y"
    except EOFError:
        raise SystemExit("Nothing was changed: nobody is there to answer. Add --yes to do it unasked.") from None


def _revision(manager: MediationDBManager) -> str:
    return manager.get_current_revision() or "base (there are none)"
