"""The schema of the journal's tables in a database, in a form to compare: by the migrations, or by the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect

from airflow_mediation_provider.journal.tables import Base

if TYPE_CHECKING:
    from sqlalchemy import Engine


def schema(engine: Engine) -> dict[str, Any]:
    inspector = inspect(engine)

    def described(table: str) -> dict[str, Any]:
        indexes = inspector.get_indexes(table)
        # MySQL has an index for each unique constraint, and SQLAlchemy lists it as both.
        return {
            "columns": {each["name"]: _column(each) for each in inspector.get_columns(table)},
            "key": inspector.get_pk_constraint(table),
            "unique": sorted((each["name"], each["column_names"]) for each in inspector.get_unique_constraints(table)),
            "indexes": sorted((each["name"], each["column_names"], bool(each["unique"])) for each in indexes),
        }

    return {table: described(table) for table in inspector.get_table_names() if table in Base.metadata.tables}


def schema_of_models(engine: Engine) -> dict[str, Any]:
    """Create the tables from the models, in a database that has none, and remove them again."""
    Base.metadata.create_all(engine)
    try:
        return schema(engine)
    finally:
        Base.metadata.drop_all(engine)


def _column(column: Any) -> tuple[str, Any, Any]:
    return repr(column["type"]), column["nullable"], column["default"]
