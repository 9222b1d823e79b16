"""Schedules on sessions: what Airflow makes of them, and what the tasks of a run are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG, Asset
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.simple import PartitionedAssetTimetable

from airflow_mediation_provider.assets import create_asset, on_meter_session, triggering_session
from airflow_mediation_provider.exceptions import MediationMisconfigured

COMPLETED = "mediation://mediation_default/meters/1001/COMPLETED"
FAILED = "mediation://mediation_default/meters/1001/FAILED"
AT = datetime(2026, 1, 1, tzinfo=UTC)


def stored(schedule):
    """What the scheduler reads of a DAG with this schedule, and the JSON that lies between."""
    dag = DAG("dag", schedule=schedule, start_date=AT)
    data = DagSerialization.to_dict(dag)
    return DagSerialization.from_dict(data).timetable, data["dag"]["timetable"]


def uris(timetable):
    return sorted(asset.uri for _, asset in timetable.asset_condition.iter_assets())


class TestSchedule:
    def test_it_is_airflows_own_timetable_for_the_scheduler(self):
        timetable, _ = stored(on_meter_session("1001", "COMPLETED"))

        assert type(timetable) is PartitionedAssetTimetable
        assert timetable.partitioned
        assert uris(timetable) == [COMPLETED]

    def test_a_session_of_either_starts_a_run(self):
        either = (
            on_meter_session(1001, "COMPLETED") | on_meter_session(1001, "FAILED") | on_meter_session("7", "FAILED")
        )

        timetable, _ = stored(either)

        assert uris(timetable) == sorted([COMPLETED, FAILED, "mediation://mediation_default/meters/7/FAILED"])
        for status in (COMPLETED, FAILED):
            assert evaluate(timetable, {status})
        assert not evaluate(timetable, set())

    def test_the_key_of_the_run_is_the_session(self):
        timetable, _ = stored(on_meter_session("1001", "COMPLETED"))

        mapper = timetable.get_partition_mapper(name=COMPLETED, uri=COMPLETED)

        assert mapper.to_downstream("R-00005468") == "R-00005468"

    def test_it_is_read_again_as_it_is_stored(self):
        timetable, data = stored(on_meter_session("1001", "COMPLETED") | on_meter_session("1002", "COMPLETED"))

        assert timetable.serialize() == data["__var"]

    def test_with_something_else_it_does_not_combine(self):
        with pytest.raises(TypeError):
            on_meter_session("1001", "COMPLETED") | Asset("s3://bucket/key")

    @pytest.mark.parametrize("status", ["COMPLETED", "completed", "TESTING_PASSED", "RUNNING", "STOPPING"])
    def test_every_documented_status(self, status):
        timetable, _ = stored(on_meter_session("1001", status))

        assert uris(timetable) == [f"mediation://mediation_default/meters/1001/{status.upper()}"]

    def test_the_connection(self):
        timetable, _ = stored(on_meter_session("1001", "COMPLETED", mediation_conn_id="zuora/eu 1"))

        assert uris(timetable) == ["mediation://zuora%2Feu%201/meters/1001/COMPLETED"]

    @pytest.mark.parametrize(
        ("arguments", "wrong"),
        [
            ({"meter_id": "1001"}, "status"),
            ({"meter_id": "1001", "status": "DONE"}, "status must be one of .*COMPLETED.*, not 'DONE'"),
            ({"meter_id": "1001", "status": None}, "status must be one of"),
            ({"meter_id": "", "status": "FAILED"}, "meter_id must not be empty"),
            ({"meter_id": ["1001"], "status": "FAILED"}, "meter_id must be a text"),
            ({"meter_id": "{{ params.meter }}", "status": "FAILED"}, "meter_id must be written out"),
            ({"meter_id": "1001", "status": "FAILED", "mediation_conn_id": ""}, "mediation_conn_id must not be empty"),
            ({"meter_id": "1001", "status": "FAILED", "poll_interval": 1}, "poll_interval must be .* from 5 seconds"),
        ],
    )
    def test_the_error_names_the_argument(self, arguments, wrong):
        with pytest.raises((ValueError, TypeError), match=wrong):
            on_meter_session(**arguments)


def evaluate(timetable, true):
    """Ask Airflow's own evaluator whether the condition is met by these assets."""
    from airflow.assets.evaluation import AssetEvaluator

    asked = dict.fromkeys((key for key, _ in timetable.asset_condition.iter_assets()), False)
    asked |= {key: True for key in asked if key.uri in true}
    return AssetEvaluator(session=None).run(timetable.asset_condition, asked)


class TestScheme:
    def test_an_address_that_is_written_by_hand_is_checked(self):
        with pytest.raises(ValueError, match="status must be one of"):
            Asset("mediation://mediation_default/meters/1001/COMPLETE")

    def test_it_is_the_same_asset_however_it_is_written(self):
        assert Asset("mediation://mediation_default/meters/1001/completed/").uri == COMPLETED

    def test_lineage_makes_the_same_asset(self):
        assert create_asset(meter_id="1001", status="COMPLETED", extra={"a": 1}).uri == COMPLETED


def event(uri, session, seconds=0):
    return SimpleNamespace(
        asset=SimpleNamespace(uri=uri), extra={"session_id": session}, timestamp=AT + timedelta(seconds=seconds)
    )


def context(*events):
    found: dict = {}
    for each in events:
        found.setdefault(Asset(each.asset.uri), []).append(each)
    dag_run = SimpleNamespace(run_id="manual__1", dag_id="load")
    return {"triggering_asset_events": found, "dag_run": dag_run}


class TestTriggeringSession:
    def test_the_session_of_the_run(self):
        assert triggering_session(context(event(COMPLETED, "R-1"))) == {"session_id": "R-1"}

    def test_of_several_events_the_newest(self):
        events = [event(FAILED, "R-2", seconds=2), event(COMPLETED, "R-1"), event(COMPLETED, "R-3", seconds=3)]

        assert triggering_session(context(*events)) == {"session_id": "R-3"}

    def test_other_assets_say_nothing(self):
        events = [event("s3://bucket/key", "R-9", seconds=9), event(COMPLETED, "R-1")]

        assert triggering_session(context(*events)) == {"session_id": "R-1"}

    @pytest.mark.parametrize("given", [context(), {**context(), "triggering_asset_events": None}])
    def test_a_run_that_a_user_started_has_none(self, given):
        with pytest.raises(MediationMisconfigured, match="No session started the run manual__1 of load"):
            triggering_session(given)
