"""Migrations on MySQL: Airflow's own command, and ours, on a real MariaDB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, inspect

from airflow_mediation_provider.journal.tables import Base
from tests.journal_schema import schema, schema_of_models
from tests.mariadb import airflow, mariadb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mariadb(tmp_path_factory.mktemp("mariadb")) as address:
        yield address


@pytest.fixture
def engine(address: str) -> Iterator[Engine]:
    engine = create_engine(address)
    yield engine
    engine.dispose()


def test_airflow_db_migrate_creates_the_tables_on_mariadb(engine: Engine, address: str, tmp_path: Path) -> None:
    expected = schema_of_models(engine)

    airflow(address, tmp_path, "db", "migrate")

    assert set(expected) == set(Base.metadata.tables)
    assert schema(engine) == expected
    airflow(address, tmp_path, "db", "check-migrations", "--migration-wait-timeout", "0")
    airflow(address, tmp_path, "mediation", "db", "downgrade", "--to-revision", "base", "--yes")
    assert {each for each in inspect(engine).get_table_names() if each.startswith("mediation_")} == set()
    airflow(address, tmp_path, "mediation", "db", "migrate")
    assert schema(engine) == expected
