"""``airflow mediation db ...``: migrate, downgrade and check only the journal's tables."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow.utils.db import DBLocks, create_global_lock
from airflow.utils.session import create_session
from alembic.util import CommandError
from sqlalchemy.exc import OperationalError

from airflow_mediation_provider.commands import command, sentence
from airflow_mediation_provider.journal.manager import MediationDBManager
from airflow_mediation_provider.journal.transaction import said

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator


@command
def migrate(args: Namespace) -> None:
    """Create the tables, or migrate them to a revision; as ``airflow db migrate`` does with all tables."""
    with _manager() as manager:
        manager.upgradedb(to_revision=args.to_revision)
        print(f"The journal's tables are at revision {_revision(manager)}.")


@command
def downgrade(args: Namespace) -> None:
    """Go back to an earlier revision, which ``airflow db downgrade`` does for no provider."""
    lost = "the whole journal" if args.to_revision == "base" else "the data that it has no columns for"
    question = f"Going back to revision {args.to_revision} deletes {lost}. Proceed? (y/n) "
    if not (args.yes or _agreed(question)):
        raise SystemExit("Nothing was changed.")
    with _manager() as manager:
        manager.downgrade(args.to_revision)
        print(f"The journal's tables are at revision {_revision(manager)}.")


@command
def check(_args: Namespace) -> None:
    """Check that the tables have the revision that this version needs; the result is also the exit code."""
    with _explained(), create_session() as session:
        manager = MediationDBManager(session)
        wanted = ", ".join(manager.get_script_object().get_heads())
        if not manager.check_migration():
            raise SystemExit(
                f"The journal's tables are at revision {_revision(manager)}, and this version of the provider needs "
                f"{wanted}: run `airflow db migrate`, or `airflow mediation db migrate` only for them."
            )
        print(f"The journal's tables are at revision {wanted}, as this version needs.")


@contextmanager
def _manager() -> Iterator[MediationDBManager]:
    """Return the manager, with the lock that excludes other migrations of Airflow's database."""
    with (
        _explained(),
        create_session() as session,
        create_global_lock(session=session, lock=DBLocks.MIGRATIONS),
    ):
        yield MediationDBManager(session)


@contextmanager
def _explained() -> Iterator[None]:
    """End the command with one sentence after an error of the database or of Alembic."""
    try:
        yield
    except CommandError as error:
        raise SystemExit(sentence(error)) from None
    except OperationalError as error:
        raise SystemExit(f"Airflow's database gave an error: {said(error)}.") from None


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() == "y"
    except EOFError:
        raise SystemExit("Nothing was changed: there is no terminal to confirm on. Add --yes.") from None


def _revision(manager: MediationDBManager) -> str:
    return manager.get_current_revision() or "base (no tables)"
