"""Runs that a DAG missed: exactly those, once each, for that DAG alone; by Airflow's own scheduler."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.asset import AssetEvent
from airflow.sdk import Asset, PartitionedAssetTimetable, StartOfDayMapper
from sqlalchemy import func, select

from airflow_mediation_provider.assets import on_meter_session
from airflow_mediation_provider.journal.record import JournalMissing
from airflow_mediation_provider.journal.replay import Replayed, replay
from airflow_mediation_provider.journal.tables import Base
from airflow_mediation_provider.protocol.asset_uri import asset_uri
from tests.unit.journal.scheduling import CONN, NOW, SINCE, Airflow, change, poll, tell

if TYPE_CHECKING:
    from collections.abc import Callable

COMPLETED = asset_uri(CONN, "1", "COMPLETED")
FAILED = asset_uri(CONN, "1", "FAILED")


@pytest.fixture
def airflow(sqlite_database: str, airflow_on: Callable[[str], str]) -> Airflow:
    airflow_on(sqlite_database)
    return Airflow()


@pytest.fixture
def each_airflow(airflow_database: str) -> Airflow:
    """On SQLite and on PostgreSQL."""
    del airflow_database
    return Airflow()


def again(dag_id: str | None = None, **options: Any) -> list[Replayed]:
    return list(replay(dag_id=dag_id, **{"since": SINCE, **options}))


def keys(replayed: list[Replayed]) -> dict[str, list[str]]:
    return {each.dag_id: [missed.key for missed in each.missed] for each in replayed}


class TestReplay:
    def test_exactly_what_was_missed_and_twice_nothing_more(self, each_airflow: Airflow):
        each_airflow.know("load", on_meter_session("1", "COMPLETED"))
        each_airflow.know("other", on_meter_session("1", "COMPLETED"))
        tell(change("R-1", "COMPLETED"))
        each_airflow.schedule()
        each_airflow.pause("load")
        tell(change("R-2", "COMPLETED", at=2), change("R-3", "FAILED", at=3), change("R-4", "COMPLETED", at=4))
        each_airflow.pause("load", paused=False)
        assert each_airflow.runs("load") == ["R-1"]

        [first] = again("load")

        assert [(each.key, each.uri, each.at) for each in first.missed] == [
            ("R-2", COMPLETED, NOW + timedelta(seconds=2)),
            ("R-4", COMPLETED, NOW + timedelta(seconds=4)),
        ]
        assert first.known == 1
        # Not even before the scheduler has had its turn.
        assert keys(again("load")) == {"load": []}
        assert each_airflow.runs("load") == ["R-1", "R-2", "R-4"]
        assert keys(again("load")) == {"load": []}
        assert each_airflow.runs("other") == ["R-1", "R-2", "R-4"]

    def test_the_run_is_told_what_it_would_have_been_told_then(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "COMPLETED"))
        airflow.pause("load", paused=False)

        again("load")
        airflow.schedule()

        [[told]] = airflow.sessions_of("load")
        assert (told["session_id"], told["status"], told["evidence"], told["certain"]) == (
            "R-1",
            "COMPLETED",
            "callout",
            True,
        )
        # It is the event of that time: whoever counts events counts the session once.
        with settings.NonScopedSession() as session:
            assert session.scalar(select(func.count()).select_from(AssetEvent)) == 1

    def test_a_dag_that_was_not_there_yet(self, airflow: Airflow):
        tell(change("R-1", "COMPLETED"), change("R-2", "FAILED"))
        airflow.know("load", on_meter_session("1", "COMPLETED"))

        assert keys(again("load")) == {"load": ["R-1"]}
        assert airflow.runs("load") == ["R-1"]
        [[told]] = airflow.sessions_of("load")
        assert (told["session_id"], told["evidence"], told["certain"]) == ("R-1", "callout", True)

    def test_only_of_the_time_asked_for(self, airflow: Airflow):
        tell(*(change(f"R-{hour}", "COMPLETED", at=hour * 3600) for hour in range(5)))
        airflow.know("load", on_meter_session("1", "COMPLETED"))

        replayed = again("load", since=NOW + timedelta(hours=1), until=NOW + timedelta(hours=3))

        assert keys(replayed) == {"load": ["R-1", "R-2"]}

    def test_it_can_be_asked_without_doing_it(self, airflow: Airflow):
        tell(change("R-1", "COMPLETED"))
        airflow.know("load", on_meter_session("1", "COMPLETED"))

        assert keys(again("load", dry_run=True)) == {"load": ["R-1"]}
        assert airflow.runs("load") == []

    def test_more_than_one_transaction_takes(self, each_airflow: Airflow):
        tell(*(change(f"R-{number:03}", "COMPLETED", at=number) for number in range(120)))
        each_airflow.know("load", on_meter_session("1", "COMPLETED"))

        [replayed] = again("load")

        assert [missed.key for missed in replayed.missed] == [f"R-{number:03}" for number in range(120)]

    def test_two_at_once_start_each_run_once(self, each_airflow: Airflow):
        tell(*(change(f"R-{number:03}", "COMPLETED", at=number) for number in range(60)))
        each_airflow.know("load", on_meter_session("1", "COMPLETED"))

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: again("load"), range(4)))

        assert sorted(missed.key for [each] in found for missed in each.missed) == [f"R-{n:03}" for n in range(60)]
        assert each_airflow.runs("load") == [f"R-{number:03}" for number in range(60)]

    def test_callouts_meanwhile_start_each_run_once(self, each_airflow: Airflow):
        each_airflow.know("load", on_meter_session("1", "COMPLETED"))
        sessions = [f"R-{number:02}" for number in range(30)]

        with ThreadPoolExecutor(2) as pool:
            told = pool.submit(lambda: [tell(change(session, "COMPLETED")) for session in sessions])
            while not told.done():
                again("load")
            told.result()
        again("load")

        assert each_airflow.runs("load") == sessions


class TestWhichSessions:
    def test_one_that_ended_otherwise_in_the_end_is_not_started(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "COMPLETED"))
        tell(change("R-1", "FAILED", at=1))
        airflow.pause("load", paused=False)

        assert keys(again("load")) == {"load": []}

    def test_one_that_was_re_opened_is_not_started(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "COMPLETED"))
        tell(change("R-1", "RUNNING", "COMPLETED", at=1))
        airflow.pause("load", paused=False)

        assert keys(again("load")) == {"load": []}

    def test_a_status_that_was_passed(self, airflow: Airflow):
        airflow.know("announce", on_meter_session("1", "PAUSED"), paused=True)
        tell(change("R-1", "PAUSED"))
        tell(change("R-1", "RUNNING", "PAUSED", at=1))
        airflow.pause("announce", paused=False)

        assert keys(again("announce")) == {"announce": ["R-1"]}
        assert airflow.runs("announce") == ["R-1"]

    def test_what_a_poll_told_of_nobody(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        for at, status in enumerate(["RUNNING", "COMPLETED"]):
            tell(poll(status, at - 10))
        airflow.pause("load", paused=False)

        [replayed] = again("load")

        [missed] = replayed.missed
        assert missed.key.startswith("poll-1-COMPLETED-")
        assert airflow.runs("load") == [missed.key]
        assert keys(again("load")) == {"load": []}

    def test_what_a_poll_told_of_a_session_that_failed_in_truth(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "RUNNING", "INITIALIZING"))
        for at, status in enumerate(["RUNNING", "COMPLETED"]):
            tell(poll(status, at - 10))
        tell(change("R-1", "FAILED", at=5))
        airflow.pause("load", paused=False)

        assert keys(again("load")) == {"load": []}

    def test_either_of_two_is_one_run_of_a_session(self, airflow: Airflow):
        either = on_meter_session("1", "COMPLETED") | on_meter_session("1", "FAILED")
        airflow.know("both", either, paused=True)
        tell(change("R-1", "COMPLETED"), change("R-2", "FAILED"))
        tell(change("R-1", "FAILED", at=1))
        airflow.pause("both", paused=False)

        assert keys(again("both")) == {"both": ["R-2", "R-1"]}
        assert airflow.runs("both") == ["R-1", "R-2"]

    def test_of_one_session_alone(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "COMPLETED"), change("R-2", "COMPLETED", at=1), change("R-10", "COMPLETED", at=2))
        airflow.pause("load", paused=False)

        assert keys(again("load", key="R-1", dry_run=True)) == {"load": ["R-1"]}
        [replayed] = again("load", key="R-1")
        assert (keys([replayed]), replayed.known) == ({"load": ["R-1"]}, 0)
        assert airflow.runs("load") == ["R-1"]
        [replayed] = again("load", key="R-1")
        assert (keys([replayed]), replayed.known) == ({"load": []}, 1)
        [replayed] = again("load", key="R-3")
        assert (keys([replayed]), replayed.known) == ({"load": []}, 0)


class TestWhichDags:
    def test_all_on_an_asset(self, airflow: Airflow):
        tell(change("R-1", "COMPLETED"))
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        airflow.know("report", on_meter_session("1", "COMPLETED") | on_meter_session("1", "FAILED"))
        airflow.know("elsewhere", on_meter_session("2", "COMPLETED"))
        airflow.know("asleep", on_meter_session("1", "COMPLETED"), paused=True)

        replayed = {each.dag_id: each for each in again(uri=COMPLETED)}

        assert {dag_id: bool(each.missed) for dag_id, each in replayed.items()} == {
            "asleep": False,
            "load": True,
            "report": True,
        }
        assert "airflow dags unpause asleep" in replayed["asleep"].refused
        assert airflow.runs("asleep") == []
        assert airflow.runs("report") == ["R-1"]

    @pytest.mark.parametrize(
        ("schedule", "why"),
        [
            (Asset(COMPLETED), "merges sessions"),
            (
                PartitionedAssetTimetable(assets=Asset(COMPLETED), default_partition_mapper=StartOfDayMapper()),
                "other partition keys",
            ),
        ],
    )
    def test_a_schedule_that_cannot_tell_is_left_alone(self, airflow: Airflow, schedule: Any, why: str):
        tell(change("R-1", "COMPLETED"))
        airflow.know("load", schedule)

        [replayed] = again("load")

        assert why in replayed.refused

    def test_a_dag_whose_file_is_gone(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        airflow.alter("load", is_stale=True)

        assert "gone" in again("load")[0].refused

    @pytest.mark.parametrize(
        ("which", "wrong"),
        [
            ({"dag_id": "nowhere"}, "there is no DAG 'nowhere'"),
            ({"dag_id": "daily"}, "DAG 'daily' is not scheduled on sessions"),
            ({"uri": FAILED}, f"no DAG is scheduled on {FAILED}"),
            ({"uri": "mediation://eu/meters/1/DONE"}, "status must be one of"),
            ({"dag_id": "daily", "since": NOW, "until": SINCE}, "must be before until"),
        ],
    )
    def test_the_error_says_what_is_wrong(self, airflow: Airflow, which: dict[str, Any], wrong: str):
        airflow.know("daily", "@daily")

        with pytest.raises(ValueError, match=wrong):
            again(**which)


def test_without_the_tables_the_command_is_named(airflow: Airflow):
    airflow.know("load", on_meter_session("1", "COMPLETED"))
    with closing(settings.get_engine().connect()) as connection:
        Base.metadata.drop_all(connection)
        connection.commit()

    with pytest.raises(JournalMissing, match="airflow db migrate"):
        again("load")
