"""Runs that a Dag missed: exactly those, once each, for that Dag alone; by Airflow's own scheduler."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.asset import AssetEvent, AssetPartitionDagRun, PartitionedAssetKeyLog
from airflow.models.dagrun import DagRun
from airflow.sdk import Asset, PartitionedAssetTimetable, StartOfDayMapper
from sqlalchemy import delete, func, select, text

from airflow_mediation_provider.assets import ANY_METER, on_meter_session
from airflow_mediation_provider.journal.replay import Replayed, refusals, replay
from airflow_mediation_provider.journal.session_list import SessionKey
from airflow_mediation_provider.journal.tables import Base
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.writer import JournalMissing
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from testkit.processes import wait_until
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


def of(*session_ids: str, status: str = "COMPLETED", conn: str = CONN) -> dict[SessionKey, str]:
    return {SessionKey(conn, "1", each): status for each in session_ids}


def keys(replayed: list[Replayed]) -> dict[str, list[str]]:
    return {each.dag_id: [missed.key for missed in each.missed] for each in replayed}


def known(replayed: list[Replayed]) -> list[str]:
    return [each.key for of_dag in replayed for each in of_dag.known]


class TestReplay:
    def test_exactly_the_missing_runs_are_started_and_none_by_a_second_replay(self, each_airflow: Airflow):
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
        assert known([first]) == ["R-1"]
        # Also before the scheduler has had its turn.
        assert keys(again("load")) == {"load": []}
        assert each_airflow.runs("load") == ["R-1", "R-2", "R-4"]
        assert keys(again("load")) == {"load": []}
        assert each_airflow.runs("other") == ["R-1", "R-2", "R-4"]

    def test_the_run_gets_the_same_session_as_it_would_have_got_then(self, airflow: Airflow):
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
        # It is the event of that time: a count of events has the session once.
        with settings.NonScopedSession() as session:
            assert session.scalar(select(func.count()).select_from(AssetEvent)) == 1

    def test_runs_are_started_for_a_dag_that_did_not_exist_then(self, airflow: Airflow):
        tell(change("R-1", "COMPLETED"), change("R-2", "FAILED"))
        airflow.know("load", on_meter_session("1", "COMPLETED"))

        assert keys(again("load")) == {"load": ["R-1"]}
        assert airflow.runs("load") == ["R-1"]
        [[told]] = airflow.sessions_of("load")
        assert (told["session_id"], told["evidence"], told["certain"]) == ("R-1", "callout", True)

    def test_only_sessions_in_the_requested_time_are_replayed(self, airflow: Airflow):
        tell(*(change(f"R-{hour}", "COMPLETED", at=hour * 3600) for hour in range(5)))
        airflow.know("load", on_meter_session("1", "COMPLETED"))

        replayed = again("load", since=NOW + timedelta(hours=1), until=NOW + timedelta(hours=3))

        assert keys(replayed) == {"load": ["R-1", "R-2"]}

    def test_a_dry_run_starts_nothing(self, airflow: Airflow):
        tell(change("R-1", "COMPLETED"))
        airflow.know("load", on_meter_session("1", "COMPLETED"))

        assert keys(again("load", dry_run=True)) == {"load": ["R-1"]}
        assert airflow.runs("load") == []

    def test_more_runs_than_fit_one_transaction_are_started(self, each_airflow: Airflow):
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
    def test_a_session_with_another_final_status_is_not_replayed(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "COMPLETED"))
        tell(change("R-1", "FAILED", at=1))
        airflow.pause("load", paused=False)

        assert keys(again("load")) == {"load": []}

    def test_a_re_opened_session_is_not_replayed(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "COMPLETED"))
        tell(change("R-1", "RUNNING", "COMPLETED", at=1))
        airflow.pause("load", paused=False)

        assert keys(again("load")) == {"load": []}

    def test_a_status_that_the_session_has_left_is_replayed(self, airflow: Airflow):
        airflow.know("announce", on_meter_session("1", "PAUSED"), paused=True)
        tell(change("R-1", "PAUSED"))
        tell(change("R-1", "RUNNING", "PAUSED", at=1))
        airflow.pause("announce", paused=False)

        assert keys(again("announce")) == {"announce": ["R-1"]}
        assert airflow.runs("announce") == ["R-1"]

    def test_a_poll_that_names_no_session_is_replayed(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        for at, status in enumerate(["RUNNING", "COMPLETED"]):
            tell(poll(status, at - 10))
        airflow.pause("load", paused=False)

        [replayed] = again("load")

        [missed] = replayed.missed
        assert missed.key.startswith("poll-1-COMPLETED-")
        assert airflow.runs("load") == [missed.key]
        assert keys(again("load")) == {"load": []}

    def test_a_poll_is_not_replayed_for_a_session_reported_as_failed(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(change("R-1", "RUNNING", "INITIALIZING"))
        for at, status in enumerate(["RUNNING", "COMPLETED"]):
            tell(poll(status, at - 10))
        tell(change("R-1", "FAILED", at=5))
        airflow.pause("load", paused=False)

        assert keys(again("load")) == {"load": []}

    def test_a_schedule_on_either_of_two_statuses_has_one_run_of_a_session(self, airflow: Airflow):
        either = on_meter_session("1", "COMPLETED") | on_meter_session("1", "FAILED")
        airflow.know("both", either, paused=True)
        tell(change("R-1", "COMPLETED"), change("R-2", "FAILED"))
        tell(change("R-1", "FAILED", at=1))
        airflow.pause("both", paused=False)

        assert keys(again("both")) == {"both": ["R-2", "R-1"]}
        assert airflow.runs("both") == ["R-1", "R-2"]

    def test_chosen_sessions_alone_can_be_replayed(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"), paused=True)
        tell(*(change(f"R-{number}", "COMPLETED", at=number) for number in (1, 2, 3, 10)))
        airflow.pause("load", paused=False)

        assert keys(again("load", of=of("R-1", "R-3"), dry_run=True)) == {"load": ["R-1", "R-3"]}
        replayed = again("load", of=of("R-1", "R-3"))
        assert (keys(replayed), known(replayed)) == ({"load": ["R-1", "R-3"]}, [])
        assert airflow.runs("load") == ["R-1", "R-3"]
        replayed = again("load", of=of("R-1", "R-2"))
        assert (keys(replayed), known(replayed)) == ({"load": ["R-2"]}, ["R-1"])
        for other in (of("R-4"), of("R-10", status="FAILED")):
            replayed = again("load", of=other)
            assert (keys(replayed), known(replayed)) == ({"load": []}, [])

    def test_the_reason_for_a_refusal_is_known_before(self, airflow: Airflow):
        airflow.know("asleep", on_meter_session("1", "COMPLETED"), paused=True)
        airflow.know("awake", on_meter_session("1", "COMPLETED"))
        airflow.know("other", None)
        reasons = read(lambda session: refusals(session, ["asleep", "awake", "other"]))
        assert (reasons["asleep"].partition(":")[0], reasons["awake"]) == ("it is paused", "")
        assert reasons["other"] == "it is not scheduled on sessions"


class TestWhichDags:
    def test_all_dags_on_an_asset_are_replayed(self, airflow: Airflow):
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
            (Asset(COMPLETED), "start no run"),
            (
                PartitionedAssetTimetable(assets=Asset(COMPLETED), default_partition_mapper=StartOfDayMapper()),
                "other partition keys",
            ),
        ],
    )
    def test_a_schedule_whose_missing_runs_cannot_be_found_is_refused(self, airflow: Airflow, schedule: Any, why: str):
        tell(change("R-1", "COMPLETED"))
        airflow.know("load", schedule)

        [replayed] = again("load")

        assert why in replayed.refused

    def test_a_dag_whose_file_has_been_removed_is_refused(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        airflow.alter("load", is_stale=True)

        assert "removed" in again("load")[0].refused

    @pytest.mark.parametrize(
        ("which", "wrong"),
        [
            ({"dag_id": "nowhere"}, "there is no Dag 'nowhere'"),
            ({"dag_id": "daily"}, "Dag 'daily' is not scheduled on sessions"),
            ({"uri": FAILED}, f"no Dag is scheduled on {FAILED}"),
            ({"uri": "mediation://eu/meters/1/DONE"}, "no Dag is scheduled on mediation://eu/meters/1/DONE"),
            ({"dag_id": "daily", "since": NOW, "until": SINCE}, "must be before until"),
        ],
    )
    def test_the_error_names_the_cause(self, airflow: Airflow, which: dict[str, Any], wrong: str):
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


class TestByEvents:
    """What counts is the events that runs have, not the keys of runs."""

    def test_an_arrival_after_the_run_of_an_earlier_one_is_missed(self, each_airflow: Airflow):
        each_airflow.know("load", on_meter_session(ANY_METER, "COMPLETED"))
        tell(change("R-1", "COMPLETED"))
        each_airflow.schedule()
        each_airflow.pause("load")
        tell(change("R-1", "RUNNING", "COMPLETED", at=1))
        tell(change("R-1", "COMPLETED", at=2))
        each_airflow.pause("load", paused=False)

        assert keys(again("load")) == {"load": ["R-1"]}
        assert each_airflow.runs("load") == ["R-1", "R-1"]
        [first, second] = each_airflow.sessions_of("load")
        assert [each["observed_at"] for each in (*first, *second)] == [
            (NOW + timedelta(seconds=seconds)).isoformat() for seconds in (0, 2)
        ]
        assert keys(again("load")) == {"load": []}

    def test_a_pending_run_that_airflow_dropped_is_missed(self, each_airflow: Airflow):
        """Airflow deletes the pending runs of a Dag whose schedule is changed, and the links to their events."""
        each_airflow.know("load", on_meter_session("1", "RUNNING"))
        tell(change("R-1", "RUNNING", "INITIALIZING"))
        each_airflow.schedule()
        tell(change("R-1", "PAUSED", at=1))
        tell(change("R-1", "RUNNING", "PAUSED", at=2))
        with settings.get_engine().begin() as connection:
            connection.execute(delete(PartitionedAssetKeyLog))
            connection.execute(delete(AssetPartitionDagRun))
        assert each_airflow.runs("load") == ["R-1"]

        assert keys(again("load")) == {"load": ["R-1"]}
        assert each_airflow.runs("load") == ["R-1", "R-1"]
        assert keys(again("load")) == {"load": []}

    def test_a_run_for_the_session_of_another_tenant_or_meter_is_another(self, each_airflow: Airflow):
        both = on_meter_session(ANY_METER, "COMPLETED") | on_meter_session(
            ANY_METER, "COMPLETED", mediation_conn_id="eu"
        )
        each_airflow.know("load", both)
        tell(change("R-1", "COMPLETED"))
        each_airflow.schedule()
        each_airflow.pause("load")
        tell(change("R-1", "COMPLETED"), conn="eu")
        tell(change("R-1", "COMPLETED", meter="2"))
        each_airflow.pause("load", paused=False)

        assert keys(again("load", of=of("R-1"))) == {"load": []}
        [replayed] = again("load", of=of("R-1", conn="eu"))
        assert [each.uri for each in replayed.missed] == [asset_uri("eu", ANY_METER, "COMPLETED")]
        each_airflow.schedule()
        assert keys(again("load")) == {"load": ["R-1"]}
        each_airflow.schedule()
        told = [(each["mediation_conn_id"], each["meter_id"]) for (each,) in each_airflow.sessions_of("load")]
        assert sorted(told) == [("eu", "1"), (CONN, "1"), (CONN, "2")]

    def test_a_run_that_a_user_made_with_the_sessions_key_is_none_for_the_session(self, airflow: Airflow):
        tell(change("R-1", "COMPLETED"))
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        with settings.NonScopedSession() as session:
            run = {"run_id": "manual__1", "run_type": "manual", "partition_key": "R-1", "run_after": NOW}
            session.add(DagRun(dag_id="load", **run))
            session.commit()

        assert keys(again("load")) == {"load": ["R-1"]}

    def test_a_run_whose_events_were_deleted_counts(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        tell(change("R-1", "COMPLETED"))
        airflow.schedule()
        with settings.get_engine().begin() as connection:
            connection.execute(delete(AssetEvent))

        assert keys(again("load")) == {"load": []}

    def test_a_dag_that_moved_to_another_address_has_not_missed_what_it_ran_for(self, airflow: Airflow):
        airflow.know("load", on_meter_session("1", "COMPLETED"))
        tell(change("R-1", "COMPLETED"))
        airflow.schedule()
        airflow.know("load", on_meter_session(ANY_METER, "COMPLETED"))
        tell(change("R-2", "COMPLETED", meter="2", at=1))
        airflow.schedule()

        assert keys(again("load")) == {"load": []}

    def test_only_what_fits_the_filters_is_missed(self, airflow: Airflow):
        tell(change("R-1", "FAILED"), change("R-2", "FAILED", "PAUSED"), change("R-3", "CANCELED", meter="2"))
        tell(change("R-4", "CANCELED", "TESTING", debug=True, meter="3"), change("R-5", "FAILED", run_type="CANARY"))
        airflow.know("failed", on_meter_session(ANY_METER, "FAILED", previous_statuses="RUNNING"))
        airflow.know("tests", on_meter_session(ANY_METER, ["FAILED", "CANCELED"], run_type="DEBUG"))

        assert keys(again("failed") + again("tests")) == {"failed": ["R-1"], "tests": ["R-4"]}
        assert (airflow.runs("failed"), airflow.runs("tests")) == (["R-1"], ["R-4"])


def test_an_arrival_while_the_scheduler_makes_the_run_is_not_lost(
    postgres_database: str, airflow_on: Callable[[str], str]
):
    airflow_on(postgres_database)
    airflow = Airflow()
    airflow.know("load", on_meter_session("1", ["RUNNING", "COMPLETED"]))
    tell(change("R-1", "RUNNING", "INITIALIZING"))
    with ThreadPoolExecutor(1) as pool, settings.NonScopedSession() as scheduler:
        airflow.schedule_in(scheduler)
        callout = pool.submit(lambda: tell(change("R-1", "COMPLETED", at=1)))
        blocked = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        wait_until(lambda: callout.done() or scheduler.scalar(blocked), timeout=30, what="the callout to wait")
        scheduler.commit()
        callout.result()

    assert airflow.runs("load") == ["R-1", "R-1"]
    assert [[each["status"] for each in events] for events in airflow.sessions_of("load")] == [
        ["RUNNING"],
        ["COMPLETED"],
    ]
