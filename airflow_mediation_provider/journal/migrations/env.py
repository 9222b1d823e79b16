"""The environment in which Alembic runs the migrations: Airflow's database, an own version table, one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow import settings
from alembic import context

from airflow_mediation_provider.journal.tables import VERSION_TABLE, Base

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def _ours(_object: object, name: str | None, kind: str, *_reflected: object) -> bool:
    """Return whether Alembic compares a table: Airflow's tables in the same database are left out."""
    return kind != "table" or name in Base.metadata.tables


def _run_online(connection: Connection) -> None:
    on_sqlite = connection.dialect.name == "sqlite"
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        include_object=_ours,
        compare_server_default=True,
        render_as_batch=True,
        # SQLite has transactional DDL; only its driver does not start a transaction for it.
        transactional_ddl=True if on_sqlite else None,
    )
    with context.begin_transaction():
        if on_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        context.run_migrations()


def _run_offline() -> None:
    context.configure(
        url=settings.SQL_ALCHEMY_CONN,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        include_object=_ours,
        literal_binds=True,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _run_offline()
else:
    with settings.get_engine().connect() as connection:
        _run_online(connection)
