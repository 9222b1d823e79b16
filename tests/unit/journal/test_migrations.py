"""Tables made by the migrations: equal to the models, and Airflow's own commands for databases reach them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from airflow import settings
from airflow.utils.db import check_migrations, resetdb
from airflow.utils.db_manager import RunDBManager
from alembic.autogenerate import compare_metadata
from alembic.ddl.impl import DefaultImpl
from alembic.migration import MigrationContext
from sqlalchemy import func, inspect, select
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal.manager import MediationDBManager
from airflow_mediation_provider.journal.tables import VERSION_TABLE, Base, CallsRow, SessionRow, TransitionRow, WaitRow
from tests.journal_schema import schema, schema_of_models

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Table

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
SESSION = {"conn_id": "zuora", "meter_id": "1001", "session_id": "R-00000001"}
WAIT = {"version": "0.0.1", "dag_id": "usage", "run_id": "r1", "task_id": "wait", "map_index": -1, "try_number": 1}


def manager() -> MediationDBManager:
    return MediationDBManager(settings.Session())


def tables() -> set[str]:
    return {each for each in inspect(settings.get_engine()).get_table_names() if each.startswith("mediation_")}


def fill(*, calls: bool = True) -> None:
    """One row in each table, and with a text in each field that takes one.

    :param calls: the table of the second revision as well
    """
    with Session(settings.get_engine()) as session:
        session.add(
            TransitionRow(
                **SESSION,
                kind="status_change",
                notification_id="n1",
                meter_name="Überwachung",
                run_type="NORMAL",
                status="COMPLETED",
                previous_status="RUNNING",
                started_at=NOW,
                ended_at=NOW,
                observed_at=NOW,
                source="callout",
                body={"meterId": "1001", "extra": ["kept", None, 1.5]},
                created_at=NOW,
            )
        )
        session.add(
            SessionRow(
                **SESSION,
                run_type="NORMAL",
                status="COMPLETED",
                begun_at=NOW,
                first_observed_at=NOW,
                last_observed_at=NOW,
                conflict=False,
                ambiguous=False,
                terminal=True,
                source="callout",
                transition={},
                emitted={"COMPLETED": 1},
                revision=1,
                updated_at=NOW,
            )
        )
        session.add(WaitRow(**SESSION, **WAIT, id="w1", condition={}, mode="worker", created_at=NOW, seen_at=NOW))
        if calls:
            session.add(CallsRow(conn_id="zuora", hour=NOW, calls=1, limited=0))
        session.commit()


def counts() -> list[int]:
    with Session(settings.get_engine()) as session:
        rows = (TransitionRow, SessionRow, WaitRow, CallsRow)
        return [session.scalar(select(func.count()).select_from(row)) or 0 for row in rows]


def first_tables() -> list[dict[str, object]]:
    """All that the tables of the first revision hold."""
    with settings.get_engine().connect() as connection:
        tables = [row.__table__ for row in (TransitionRow, SessionRow, WaitRow)]
        return [dict(row) for table in tables for row in connection.execute(select(table)).mappings()]


@pytest.fixture
def empty(empty_database: str, airflow_on: Callable[[str], str]) -> str:
    return airflow_on(empty_database)


@pytest.mark.usefixtures("empty")
def test_the_migrations_end_where_the_models_are() -> None:
    expected = schema_of_models(settings.get_engine())
    manager().upgradedb()

    assert set(expected) == set(Base.metadata.tables)
    assert schema(settings.get_engine()) == expected
    with settings.get_engine().connect() as connection:
        ours = {"include_object": lambda _o, name, kind, *_: kind != "table" or name in Base.metadata.tables}
        context = MigrationContext.configure(connection, opts={"compare_server_default": True, **ours})
        assert compare_metadata(context, Base.metadata) == []


@pytest.mark.usefixtures("airflow_database")
def test_airflow_db_migrate_makes_the_tables() -> None:
    assert tables() == {VERSION_TABLE, *Base.metadata.tables}
    assert manager().get_current_revision() == MediationDBManager.revision_heads_map["0.1.0"]
    fill()

    RunDBManager().upgradedb(settings.Session())
    check_migrations(timeout=0)

    assert counts() == [1, 1, 1, 1]


@pytest.mark.usefixtures("airflow_database")
def test_what_is_written_is_read_again() -> None:
    fill()
    with Session(settings.get_engine()) as session:
        row = session.scalars(select(TransitionRow)).one()
        assert (row.id, row.observed_at, row.meter_name) == (1, NOW, "Überwachung")
        assert row.body == {"meterId": "1001", "extra": ["kept", None, 1.5]}


@pytest.mark.usefixtures("airflow_database")
def test_a_downgrade_removes_ours_alone_and_an_upgrade_brings_it_back() -> None:
    fill()
    before = set(inspect(settings.get_engine()).get_table_names())

    manager().downgrade("base")

    assert tables() == {VERSION_TABLE}
    assert before - set(inspect(settings.get_engine()).get_table_names()) == set(Base.metadata.tables)
    with pytest.raises(TimeoutError):
        check_migrations(timeout=0)
    manager().upgradedb()
    assert counts() == [0, 0, 0, 0]
    check_migrations(timeout=0)


@pytest.mark.usefixtures("empty")
def test_each_revision_can_be_left_and_reached_again() -> None:
    revisions = [each.revision for each in manager().get_script_object().walk_revisions()]
    for revision in reversed(revisions):
        manager().upgradedb(to_revision=revision)
        manager().downgrade("-1")
        manager().upgradedb(to_revision=revision)
        assert manager().get_current_revision() == revision
    assert manager().check_migration()
    assert set(revisions) >= set(MediationDBManager.revision_heads_map.values())


@pytest.mark.usefixtures("empty")
def test_the_second_revision_leaves_the_rows_of_the_first_as_they_are() -> None:
    manager().upgradedb(to_revision="0001")
    fill(calls=False)
    before = first_tables()
    assert [row["conn_id"] for row in before] == ["zuora"] * 3

    manager().upgradedb(to_revision="0002")

    assert first_tables() == before
    assert counts() == [1, 1, 1, 0]
    with Session(settings.get_engine()) as session:
        session.add(CallsRow(conn_id="zuora", hour=NOW, calls=1, limited=0))
        session.commit()
    manager().downgrade("0001")
    assert first_tables() == before
    assert tables() == {VERSION_TABLE, *Base.metadata.tables} - {CallsRow.__tablename__}


@pytest.mark.usefixtures("empty")
def test_a_migration_that_breaks_off_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = DefaultImpl.create_table

    def breaks(self: DefaultImpl, table: Table, **options: object) -> None:
        if table.name == "mediation_wait":
            raise KeyboardInterrupt
        execute(self, table, **options)

    with monkeypatch.context() as broken:
        broken.setattr(DefaultImpl, "create_table", breaks)
        with pytest.raises(KeyboardInterrupt):
            manager().upgradedb()
    assert tables() == set()

    manager().upgradedb()
    assert manager().check_migration()


@pytest.mark.usefixtures("airflow_database")
def test_airflow_db_reset_takes_the_journal_with_it() -> None:
    fill()

    resetdb(skip_init=True)

    assert tables() == set()


@pytest.mark.usefixtures("empty")
def test_the_statements_can_be_looked_at_first(capsys: pytest.CaptureFixture[str]) -> None:
    manager().upgradedb(show_sql_only=True)
    assert "CREATE TABLE mediation_transition" in capsys.readouterr().out
    manager().downgrade("base", show_sql_only=True)
    assert "DROP TABLE mediation_transition" in capsys.readouterr().out
    assert tables() == set()
