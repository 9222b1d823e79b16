"""Tables created by the migrations: equal to the models, and within reach of Airflow's own database commands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.utils.db import check_migrations, resetdb
from airflow.utils.db_manager import RunDBManager
from alembic.autogenerate import compare_metadata
from alembic.ddl.impl import DefaultImpl
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, inspect, select
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal.manager import MediationDBManager
from airflow_mediation_provider.journal.receipts import Seen, record_receipts
from airflow_mediation_provider.journal.tables import (
    VERSION_TABLE,
    AnswersRow,
    Base,
    CallsRow,
    HistoryRow,
    ListedRow,
    MeterRow,
    ReceiptRow,
    ReporterRow,
    SessionRow,
    TransitionRow,
    VerdictRow,
    WaitRow,
)
from airflow_mediation_provider.protocol.callouts.receipt import Receipt
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


def rows() -> list[tuple[Table, dict[str, Any]]]:
    """One row of each table, with a text in each text column; the columns of the first revision."""
    return [
        (
            TransitionRow.__table__,
            {
                **SESSION,
                "kind": "status_change",
                "notification_id": "n1",
                "meter_name": "Überwachung",
                "run_type": "NORMAL",
                "status": "COMPLETED",
                "previous_status": "RUNNING",
                "started_at": NOW,
                "ended_at": NOW,
                "observed_at": NOW,
                "source": "callout",
                "body": {"meterId": "1001", "extra": ["kept", None, 1.5]},
                "created_at": NOW,
            },
        ),
        (SessionRow.__table__, session_values()),
        (WaitRow.__table__, wait_values("w1")),
    ]


def session_values(**values: Any) -> dict[str, Any]:
    times = dict.fromkeys(("begun_at", "first_observed_at", "last_observed_at", "updated_at"), NOW)
    flags = {"conflict": False, "ambiguous": False, "terminal": True}
    told = {"run_type": "NORMAL", "status": "COMPLETED", "source": "callout", "transition": {}}
    return {**SESSION, **times, **flags, **told, "emitted": {"COMPLETED": 1}, "revision": 1, **values}


def wait_values(wait_id: str, **values: Any) -> dict[str, Any]:
    return {**SESSION, **WAIT, "id": wait_id, "condition": {}, "mode": "worker"} | {
        "created_at": NOW,
        "seen_at": NOW,
        **values,
    }


def put(*what: tuple[Table, dict[str, Any]]) -> None:
    with settings.get_engine().begin() as connection:
        for table, values in what:
            connection.execute(insert(table).values(**values))


def fill(*, calls: bool = True) -> None:
    """One row in each table.

    :param calls: the table of the second revision as well
    """
    put(*rows())
    if calls:
        put((CallsRow.__table__, {"conn_id": "zuora", "hour": NOW, "calls": 1, "limited": 0}))


def counts() -> list[int]:
    with Session(settings.get_engine()) as session:
        rows = (TransitionRow, SessionRow, WaitRow, CallsRow)
        return [session.scalar(select(func.count()).select_from(row.__table__)) or 0 for row in rows]


def first_tables() -> list[dict[str, object]]:
    """All values of the rows of the first revision's tables, in the columns of that revision."""
    with settings.get_engine().connect() as connection:
        return [
            dict(row)
            for table, values in rows()
            for row in connection.execute(select(*(table.c[name] for name in values))).mappings()
        ]


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
        context = MigrationContext.configure(connection, opts=ours)
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
def test_written_rows_are_read_unchanged() -> None:
    fill()
    with Session(settings.get_engine()) as session:
        row = session.scalars(select(TransitionRow)).one()
        assert (row.id, row.observed_at, row.meter_name) == (1, NOW, "Überwachung")
        assert row.body == {"meterId": "1001", "extra": ["kept", None, 1.5]}


@pytest.mark.usefixtures("airflow_database")
def test_a_downgrade_removes_only_our_tables_and_an_upgrade_creates_them_again() -> None:
    fill()
    before = set(inspect(settings.get_engine()).get_table_names())

    manager().downgrade("base")

    assert tables() == set()
    assert before - set(inspect(settings.get_engine()).get_table_names()) == {VERSION_TABLE, *Base.metadata.tables}
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
    put((CallsRow.__table__, {"conn_id": "zuora", "hour": NOW, "calls": 1, "limited": 0}))
    manager().downgrade("0001")
    assert first_tables() == before
    assert tables() == {VERSION_TABLE, *Base.metadata.tables} - {
        each.__tablename__ for each in (CallsRow, VerdictRow, HistoryRow, ReporterRow, ReceiptRow, AnswersRow, MeterRow)
    }


LATER = NOW + timedelta(minutes=5)


@pytest.mark.usefixtures("empty")
def test_the_third_revision_makes_verdicts_of_unambiguous_ended_waits() -> None:
    manager().upgradedb(to_revision="0002")
    live = {"status": "RUNNING", "terminal": False, "source": "run"}
    sessions = {
        "only": live,
        "failed": live,
        "two": live,
        "several": live,
        "later": {**live, "last_observed_at": LATER + timedelta(minutes=1)},
        "left": live,
        "told": {"ended_at": NOW - timedelta(minutes=1)},
        "doubtful": {"status": "FAILED", "conflict": True},
    }
    only = {"outcome": "MET", "condition": {"statuses": ["COMPLETED"], "fail_on": ["FAILED"]}}
    waits = {
        "only": only,
        "failed": {**only, "outcome": "FAILED"},
        "two": only,
        "two more": {**only, "outcome": "FAILED", "ended_at": LATER + timedelta(minutes=1)},
        "several": {**only, "condition": {"statuses": ["COMPLETED", "FAILED"]}},
        "later": only,
        "told": {**only, "outcome": "FAILED"},
        "left": {**only, "outcome": "left"},
        "no session": {**only, "session_id": None},
        "unknown": only,
        "odd": {**only, "session_id": "only", "condition": ["COMPLETED"]},
        "not an end": {**only, "session_id": "several", "condition": {"statuses": ["RUNNING"]}},
    }
    put(
        *((SessionRow.__table__, session_values(session_id=key, **values)) for key, values in sessions.items()),
        *(
            (
                WaitRow.__table__,
                wait_values(key, **{"session_id": key.removesuffix(" more"), "ended_at": LATER, **values}),
            )
            for key, values in waits.items()
        ),
    )

    manager().upgradedb()

    with Session(settings.get_engine()) as session:
        best = {
            row.session_id: (row.best_status, row.best_evidence, row.best_certain, row.best_ended_at, row.best_differs)
            for row in session.scalars(select(ListedRow))
        }
        assert {row.session_id for row in session.scalars(select(ListedRow)) if row.best_ended} == {
            each for each, values in best.items() if values[3]
        }
        running = ("RUNNING", "run", True, None, False)
        assert best == {
            "only": ("COMPLETED", "poll", False, LATER, False),
            "failed": ("FAILED", "poll", False, LATER, False),
            "two": ("FAILED", "poll", False, LATER + timedelta(minutes=1), True),
            "several": running,
            "later": running,
            "left": running,
            "told": ("COMPLETED", "callout", True, NOW - timedelta(minutes=1), False),
            "doubtful": ("FAILED", "callout", False, NOW, False),
        }
        concluded = {row.ti_id: (row.wait_id, row.status, row.certain) for row in session.scalars(select(VerdictRow))}
        assert concluded == {
            "only": ("only", "COMPLETED", False),
            "failed": ("failed", "FAILED", False),
            "two": ("two", "COMPLETED", False),
            "two more": ("two more", "FAILED", False),
        }
        # A wait that its process left goes on as long as Airflow's state of its task does.
        assert list(session.scalars(select(WaitRow.id).where(WaitRow.ended_at.is_(None)))) == ["left"]
        session.add(ListedRow(**session_values(session_id="from a task only")))
        session.add(WaitRow(**wait_values("noted", mode="task", ended_at=NOW)))
        session.commit()

    manager().downgrade("0002")

    with settings.get_engine().connect() as connection:
        table = WaitRow.__table__
        ended = connection.execute(select(table.c.id, table.c.ended_at)).all()
        assert {id_ for id_, _ in ended} == set(waits)
        assert {row.id: row.ended_at for row in ended}["left"] == NOW
        left = connection.scalars(select(SessionRow.__table__.c.session_id)).all()
        assert set(left) == set(sessions)


@pytest.mark.usefixtures("empty")
def test_the_fourth_revision_adds_a_table_and_a_downgrade_removes_it() -> None:
    manager().upgradedb(to_revision="0003")
    fill()
    before = first_tables()

    manager().upgradedb()
    cursor = {"read_to": NOW.isoformat()}
    reader = {"revision": 1, "cursor": cursor, "seconds": 60.0, "claimed_at": NOW, "open": True, "lasting": False}
    put((HistoryRow.__table__, {"conn_id": "zuora", **reader}))
    with Session(settings.get_engine()) as session:
        row = session.scalars(select(HistoryRow)).one()
        assert (row.cursor, row.seconds, row.claimed_at, row.read_at) == (cursor, 60.0, NOW, None)

    manager().downgrade("0003")
    assert first_tables() == before
    assert HistoryRow.__tablename__ not in tables()


@pytest.mark.usefixtures("empty")
def test_the_fifth_revision_leaves_waits_without_a_reporter_and_a_downgrade_removes_it() -> None:
    manager().upgradedb(to_revision="0004")
    fill()
    before = first_tables()

    manager().upgradedb()
    with Session(settings.get_engine()) as session:
        assert session.scalars(select(WaitRow)).one().reporter is None
        session.add(ReporterRow(id="r", conn_id="zuora", seen_at=NOW))
        session.commit()
    assert first_tables() == before

    manager().downgrade("0004")
    assert first_tables() == before
    assert ReporterRow.__tablename__ not in tables()


@pytest.mark.usefixtures("empty")
def test_the_sixth_revision_adds_two_tables_and_a_downgrade_removes_them() -> None:
    manager().upgradedb(to_revision="0005")
    fill()
    before = first_tables()

    manager().upgradedb()
    seen = Seen()
    seen.add(Receipt(conn_id="zuora", received_at=NOW, status=401, headers={"host": "airflow"}, body="Ü \U0001f600"))
    record_receipts(seen)
    with Session(settings.get_engine()) as session:
        row = session.scalars(select(ReceiptRow)).one()
        assert (row.received_at, row.headers, row.body) == (NOW, {"host": "airflow"}, "Ü \U0001f600")
        assert session.scalars(select(AnswersRow)).one().answers == 1
    assert first_tables() == before

    manager().downgrade("0005")
    assert first_tables() == before
    assert {ReceiptRow.__tablename__, AnswersRow.__tablename__} & tables() == set()
    manager().upgradedb()
    with Session(settings.get_engine()) as session:
        assert session.scalars(select(ReceiptRow)).all() == []


@pytest.mark.usefixtures("empty")
def test_the_seventh_revision_takes_the_last_name_of_each_meter_from_its_sessions() -> None:
    manager().upgradedb(to_revision="0006")
    names = [("1001", "R-1", "Storage", 1), ("1001", "R-2", None, 2), ("1001", "R-3", "Old", 0)]
    names += [("1002", "R-4", None, 0), ("1003", "R-5", "", 0), ("a", "R-6", "lower", 0), ("A", "R-7", "upper", 0)]
    for meter_id, session_id, name, minutes in names:
        at = NOW + timedelta(minutes=minutes)
        values = {"meter_id": meter_id, "session_id": session_id, "meter_name": name, "last_observed_at": at}
        put((SessionRow.__table__, session_values(**values)))

    manager().upgradedb()

    with Session(settings.get_engine()) as session:
        found = {row.meter_id: (row.conn_id, row.name, row.received_at) for row in session.scalars(select(MeterRow))}
    assert found == {
        "1001": ("zuora", "Storage", NOW + timedelta(minutes=1)),
        "a": ("zuora", "lower", NOW),
        "A": ("zuora", "upper", NOW),
    }
    manager().downgrade("0006")
    assert MeterRow.__tablename__ not in tables()


@pytest.mark.usefixtures("empty")
def test_the_eighth_revision_leaves_callouts_unacknowledged_and_a_downgrade_drops_who_did() -> None:
    manager().upgradedb(to_revision="0007")
    fill()
    before = first_tables()
    manager().upgradedb()
    with Session(settings.get_engine()) as session:
        row = session.scalars(select(TransitionRow)).one()
        assert (row.acknowledged_at, row.acknowledged_by) == (None, None)
        row.acknowledged_at, row.acknowledged_by = NOW, "Zoë"
        session.commit()
    with Session(settings.get_engine()) as session:
        row = session.scalars(select(TransitionRow)).one()
        assert (row.acknowledged_at, row.acknowledged_by) == (NOW, "Zoë")
    assert first_tables() == before

    manager().downgrade("0007")
    assert first_tables() == before


@pytest.mark.usefixtures("empty")
def test_the_ninth_revision_marks_the_stored_sessions_and_a_downgrade_removes_the_marks() -> None:
    manager().upgradedb(to_revision="0008")
    by_poll = {"best_evidence": "poll"}
    sessions: dict[str, tuple[str, dict[str, Any]]] = {
        "plain": ("", {}),
        "ambiguous": ("ambiguous", {"ambiguous": True}),
        "concluded": ("uncertain", {"ambiguous": True, **by_poll}),
        "proven": ("", {"best_certain": True, **by_poll}),
        "both": ("conflict unknown", {"conflict": True, "best_status": "99"}),
        "differs": ("conflict uncertain", {"best_differs": True, **by_poll}),
    }
    best = {"best_status": "COMPLETED", "best_evidence": "callout", "best_ended": True, "best_certain": False}
    put(
        *(
            (SessionRow.__table__, session_values(session_id=key, **{**best, "best_differs": False, **values}))
            for key, (_, values) in sessions.items()
        )
    )

    manager().upgradedb()
    with Session(settings.get_engine()) as session:
        marks = dict(session.execute(select(SessionRow.session_id, SessionRow.best_marks)).all())
    assert marks == {key: expected for key, (expected, _) in sessions.items()}

    manager().downgrade("0008")
    assert "best_marks" not in {
        each["name"] for each in inspect(settings.get_engine()).get_columns("mediation_session")
    }


@pytest.mark.usefixtures("empty")
def test_a_migration_that_breaks_off_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    if settings.get_engine().dialect.name == "mysql":
        pytest.skip("MySQL commits each change of a table by itself")
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
def test_the_statements_can_be_printed_instead_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    manager().upgradedb(show_sql_only=True)
    assert "CREATE TABLE mediation_transition" in capsys.readouterr().out
    manager().downgrade("base", show_sql_only=True)
    assert "DROP TABLE mediation_transition" in capsys.readouterr().out
    assert tables() == set()
