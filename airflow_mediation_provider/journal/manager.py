"""The DB manager: `airflow db migrate`, `check-migrations` and `reset` reach the journal's tables through it."""

from __future__ import annotations

from pathlib import Path

from airflow import settings
from airflow.utils.db_manager import BaseDBManager
from sqlalchemy import MetaData, Table

from airflow_mediation_provider.journal.tables import VERSION_TABLE, Base

_HERE = Path(__file__).parent


class MediationDBManager(BaseDBManager):
    """Creates and migrates the journal's tables; Airflow finds it through the provider info's ``db-managers``.

    ``airflow db downgrade`` calls no provider's manager, so ``airflow mediation db`` has commands of its own.
    """

    metadata = Base.metadata
    version_table_name = VERSION_TABLE
    migration_dir = (_HERE / "migrations").as_posix()
    alembic_file = (_HERE / "alembic.ini").as_posix()
    # `airflow db reset` deletes the asset events that are stored as sent, so it must delete the journal too.
    supports_table_dropping = True
    # The last revision of each version that added one, as `airflow db-manager ... --to-version` takes it.
    revision_heads_map = {"0.1.0": "0009"}  # noqa: RUF012  # as Airflow declares it

    def create_db_from_orm(self) -> None:
        """Create the first tables by the migrations too: that is the only way, and the one that is tested."""
        from alembic import command

        self._release_metadata_locks_if_needed()
        command.upgrade(self.get_alembic_config(), "heads")

    def downgrade(self, to_revision: str, from_revision: str | None = None, show_sql_only: bool = False) -> None:
        """Go back to an earlier revision; data for which it has no column is lost.

        :param to_revision: the revision; ``base`` removes all tables with their rows
        :param from_revision: with ``show_sql_only``: where to start from; otherwise the last one
        :param show_sql_only: print the statements instead of running them
        """
        from alembic import command

        revision = f"{from_revision or 'head'}:{to_revision}" if show_sql_only else to_revision
        self._release_metadata_locks_if_needed()
        command.downgrade(self.get_alembic_config(), revision, sql=show_sql_only)
        if to_revision == "base" and not show_sql_only:
            # Alembic keeps the empty table of the revision.
            with settings.get_engine().begin() as connection:
                Table(self.version_table_name, MetaData()).drop(connection, checkfirst=True)
