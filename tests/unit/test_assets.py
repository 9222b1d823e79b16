"""Schedules on sessions: how Airflow reads them, and the session that the tasks of a run get."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG, Asset
from airflow.serialization.decoders import decode_timetable
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.simple import PartitionedAssetTimetable

from airflow_mediation_provider.assets import (
    ANY_METER,
    MeterSessionTimetable,
    create_asset,
    on_meter_session,
    triggering_session,
    triggering_sessions,
)
from airflow_mediation_provider.exceptions import MediationMisconfigured

COMPLETED = "mediation://mediation_default/meters/1001/COMPLETED"
FAILED = "mediation://mediation_default/meters/1001/FAILED"
AT = datetime(2026, 1, 1, tzinfo=UTC)


def stored(schedule):
    """Return the scheduler's timetable of a Dag with this schedule, and the stored JSON."""
    dag = DAG("dag", schedule=schedule, start_date=AT)
    data = DagSerialization.to_dict(dag)
    return DagSerialization.from_dict(data).timetable, data["dag"]["timetable"]


def uris(timetable):
    return sorted(asset.uri for _, asset in timetable.asset_condition.iter_assets())


class TestSchedule:
    @pytest.mark.parametrize(
        "schedule",
        [
            on_meter_session("1001", "COMPLETED"),
            on_meter_session("1001", "COMPLETED") | on_meter_session("1001", "COMPLETED"),
            MeterSessionTimetable(assets=Asset(COMPLETED)) | MeterSessionTimetable(assets=Asset(COMPLETED)),
        ],
    )
    def test_what_is_stored_is_airflows_own_timetable(self, schedule):
        timetable, data = stored(schedule)

        assert isinstance(schedule, MeterSessionTimetable)
        assert data["__type"] == "airflow.timetables.simple.PartitionedAssetTimetable"
        assert type(timetable) is PartitionedAssetTimetable
        assert timetable.partitioned
        assert set(uris(timetable)) == {COMPLETED}

    def test_what_an_earlier_version_stored_is_read_as_airflows_own(self):
        _, data = stored(on_meter_session("1001", "COMPLETED"))
        path = f"{MeterSessionTimetable.__module__}.{MeterSessionTimetable.__qualname__}"

        timetable = decode_timetable({**data, "__type": path})

        assert path == "airflow_mediation_provider.assets.MeterSessionTimetable"
        assert type(timetable) is PartitionedAssetTimetable
        assert timetable.partitioned
        assert uris(timetable) == [COMPLETED]

    def test_combined_schedules_start_a_run_for_a_session_of_either(self):
        either = (
            on_meter_session(1001, "COMPLETED") | on_meter_session(1001, "FAILED") | on_meter_session("7", "FAILED")
        )

        timetable, _ = stored(either)

        assert uris(timetable) == sorted([COMPLETED, FAILED, "mediation://mediation_default/meters/7/FAILED"])
        for status in (COMPLETED, FAILED):
            assert evaluate(timetable, {status})
        assert not evaluate(timetable, set())

    def test_the_partition_key_is_the_session_id(self):
        timetable, _ = stored(on_meter_session("1001", "COMPLETED"))

        mapper = timetable.get_partition_mapper(name=COMPLETED, uri=COMPLETED)

        assert mapper.to_downstream("R-00005468") == "R-00005468"

    def test_a_stored_schedule_is_read_back_unchanged(self):
        timetable, data = stored(on_meter_session("1001", "COMPLETED") | on_meter_session("1002", "COMPLETED"))

        assert timetable.serialize() == data["__var"]

    @pytest.mark.parametrize(
        ("combine", "instead"),
        [
            (lambda a, _: a | Asset("s3://bucket/key"), "only with another one, not with Asset: .* a Dag of its own"),
            (lambda a, _: Asset("s3://bucket/key") | a, "combines by [|] only with another one"),
            (lambda a, _: a | COMPLETED, "combines by [|] only with another one"),
            (lambda a, b: a & b, "do not combine by &: .* Use [|] for a run for each session of either"),
            (lambda a, _: Asset("s3://bucket/key") & a, "do not combine by &"),
        ],
    )
    def test_what_would_never_start_is_refused_with_what_to_write(self, combine, instead):
        with pytest.raises(TypeError, match=instead):
            combine(on_meter_session("1001", "COMPLETED"), on_meter_session("1002", "COMPLETED"))

    @pytest.mark.parametrize("status", ["COMPLETED", "completed", "TESTING_PASSED", "RUNNING", "STOPPING"])
    def test_every_documented_status_makes_a_schedule(self, status):
        timetable, _ = stored(on_meter_session("1001", status))

        assert uris(timetable) == [f"mediation://mediation_default/meters/1001/{status.upper()}"]

    def test_the_connection(self):
        timetable, _ = stored(on_meter_session("1001", "COMPLETED", mediation_conn_id=" zuora/eu(1) "))

        assert uris(timetable) == ["mediation://zuora%2Feu%281%29/meters/1001/COMPLETED"]

    def test_blanks_around_an_id_are_removed(self):
        timetable, _ = stored(on_meter_session(" 1001\n", "COMPLETED"))

        assert uris(timetable) == ["mediation://mediation_default/meters/1001/COMPLETED"]
        asset = create_asset(meter_id=" 1001 ", status="COMPLETED")
        assert asset.uri == "mediation://mediation_default/meters/1001/COMPLETED"

    @pytest.mark.parametrize(
        ("arguments", "wrong"),
        [
            ({"statuses": None}, "statuses must name at least one status, for example COMPLETED"),
            ({"statuses": []}, "statuses must name at least one status"),
            ({"statuses": "NEVER_RUN"}, "statuses: no session is ever NEVER_RUN"),
            ({"statuses": "{{ params.status }}"}, "statuses: .* is no status; Zuora documents .*COMPLETED"),
            ({"statuses": ["FAILED", None]}, "statuses must be a status or a list of statuses"),
            ({"statuses": {"FAILED": 1}}, "statuses must be a status or a list of statuses"),
            ({"meter_id": ""}, "meter_id must not be empty"),
            ({"meter_id": []}, "meter_id must name at least one meter, or be ANY_METER"),
            ({"meter_id": ["1001", " "]}, "meter_id must not be empty"),
            ({"meter_id": [["1001"]]}, "meter_id must be a text, not .'1001'."),
            ({"meter_id": [ANY_METER, "1001"]}, "ANY_METER includes each meter of the connection: give it alone"),
            ({"meter_id": "10*"}, "meter_id must be one id, .*, not '10[*]'"),
            ({"meter_id": "1,010"}, "meter_id must be one id, .*, not '1,010'"),
            ({"meter_id": "None"}, "meter_id is 'None', which names nothing"),
            ({"meter_id": "{{ params.meter }}"}, "meter_id must be written out"),
            ({"meter_id": 1.5}, "meter_id must be a text, not 1.5"),
            ({"mediation_conn_id": ""}, "mediation_conn_id must not be empty"),
            ({"mediation_conn_id": "{{ var.value.c }}"}, "mediation_conn_id must be written out"),
            ({"previous_statuses": "NEVER_RUN"}, "previous_statuses: no session is ever NEVER_RUN"),
            ({"previous_statuses": ()}, "previous_statuses must name at least one status"),
            ({"run_type": "LIVE"}, "run_type must be one of NORMAL, DEBUG, not 'LIVE'"),
            ({"run_type": ["NORMAL", "LIVE"]}, "run_type must be one of NORMAL, DEBUG, not 'LIVE'"),
            ({"run_type": ()}, "run_type must be one of NORMAL, DEBUG, or a list of both"),
            ({"statuses": "TESTING", "run_type": ["NORMAL"]}, "only DEBUG sessions reach TESTING: leave run_type"),
            (
                {"statuses": "TESTING_FAILED", "run_type": "NORMAL"},
                "only DEBUG sessions reach TESTING_FAILED: leave run_type",
            ),
            ({"poll_interval": 1}, "poll_interval must be .* from 5 s to"),
            (
                {"poll_interval": 60, "meter_id": ANY_METER},
                "poll_interval does not go with meter_id=ANY_METER: .* poll",
            ),
            ({"poll_interval": 60, "previous_statuses": "RUNNING"}, "poll_interval does not go with previous_statuses"),
            ({"callout_history": 1}, "callout_history must be .* from 5 s to"),
            ({"callout_history": "60"}, "callout_history must be"),
            ({"callout_history": 60, "poll_interval": 60}, "poll_interval does not go with callout_history"),
        ],
    )
    def test_an_invalid_argument_is_named_in_the_error(self, arguments, wrong):
        with pytest.raises((ValueError, TypeError), match=wrong):
            on_meter_session(**{"meter_id": "1001", "statuses": "FAILED", **arguments})

    @pytest.mark.parametrize(
        ("arguments", "addresses"),
        [
            ({"meter_id": ["1001", 7, " 7 "], "statuses": "FAILED"}, ["1001/FAILED", "7/FAILED"]),
            ({"statuses": ("FAILED", "failed", "CANCELED")}, ["1001/CANCELED", "1001/FAILED"]),
            ({"statuses": {"FAILED", "CANCELED"}}, ["1001/CANCELED", "1001/FAILED"]),
            ({"meter_id": ANY_METER, "statuses": ["FAILED", "TESTING_FAILED"]}, ["*/FAILED", "*/TESTING_FAILED"]),
            (
                {"statuses": "FAILED", "previous_statuses": ["RUNNING", "PAUSED"]},
                ["1001/FAILED?previous_status=PAUSED", "1001/FAILED?previous_status=RUNNING"],
            ),
            (
                {"meter_id": ANY_METER, "statuses": ["CANCELED", "TESTING_FAILED"], "run_type": "debug"},
                ["*/CANCELED?run_type=DEBUG", "*/TESTING_FAILED"],
            ),
            ({"statuses": "FAILED", "run_type": "NORMAL"}, ["1001/FAILED"]),
            (
                {"statuses": ["FAILED", "TESTING_FAILED"], "run_type": ["debug", "NORMAL"]},
                ["1001/FAILED", "1001/FAILED?run_type=DEBUG", "1001/TESTING_FAILED"],
            ),
            ({"statuses": "TESTING_FAILED", "run_type": {"NORMAL", "DEBUG"}}, ["1001/TESTING_FAILED"]),
            (
                {"statuses": "CANCELED", "run_type": "DEBUG", "previous_statuses": "TESTING"},
                ["1001/CANCELED?previous_status=TESTING&run_type=DEBUG"],
            ),
            (
                {"meter_id": ["1", "2"], "statuses": "FAILED", "poll_interval": 60},
                ["1/FAILED", "1/polls/60", "2/FAILED", "2/polls/60"],
            ),
        ],
    )
    def test_each_condition_is_a_set_of_assets_with_one_spelling(self, arguments, addresses):
        timetable, _ = stored(on_meter_session(**{"meter_id": "1001", **arguments}))

        assert uris(timetable) == [f"mediation://mediation_default/meters/{each}" for each in addresses]
        assert {Asset(each).uri for each in uris(timetable)} == set(uris(timetable))


class TestCalloutHistory:
    def test_all_schedules_of_a_connection_share_one_watcher_an_interval(self):
        schedule = on_meter_session(ANY_METER, "FAILED", previous_statuses="RUNNING", callout_history=60)
        schedule |= on_meter_session(["1", "2"], "COMPLETED", callout_history=timedelta(minutes=1))
        timetable, data = stored(schedule)

        assert {each for each in uris(timetable) if "/history/" in each} == {"mediation://mediation_default/history/60"}
        text = json.dumps(data)
        assert "airflow_mediation_provider.triggers.meter_watch.CalloutHistoryTrigger" in text
        assert Asset("mediation://mediation_default/history/60").uri == "mediation://mediation_default/history/60"

    def test_a_run_starts_by_the_session_alone(self):
        timetable, _ = stored(on_meter_session("1", "COMPLETED", callout_history=60))
        assert evaluate(timetable, {"mediation://mediation_default/meters/1/COMPLETED"})
        assert not evaluate(timetable, set())


def evaluate(timetable, true):
    """Return by Airflow's own evaluator whether these assets meet the condition."""
    from airflow.assets.evaluation import AssetEvaluator

    asked = dict.fromkeys((key for key, _ in timetable.asset_condition.iter_assets()), False)
    asked |= {key: True for key in asked if key.uri in true}
    return AssetEvaluator(session=None).run(timetable.asset_condition, asked)


class TestScheme:
    def test_the_uri_of_a_handwritten_asset_is_checked(self):
        with pytest.warns(UserWarning, match="unknown status 'COMPLETE', .* Did you mean COMPLETED[?]"):
            Asset("mediation://mediation_default/meters/1001/COMPLETE")
        with pytest.raises(ValueError, match="no session is ever NEVER_RUN"):
            Asset("mediation://mediation_default/meters/1001/NEVER_RUN")
        with pytest.raises(ValueError, match="previous_status: no session is ever NEVER_RUN"):
            Asset("mediation://mediation_default/meters/1001/FAILED?previous_status=NEVER_RUN")
        assert Asset("mediation://mediation_default/meters/1001/Cancelled").uri.endswith("/1001/CANCELED")

    def test_different_spellings_of_a_uri_are_the_same_asset(self):
        assert Asset("mediation://mediation_default/meters/1001/completed/").uri == COMPLETED
        filtered = "mediation://mediation_default/meters/*/FAILED?previous_status=RUNNING&run_type=DEBUG"
        assert Asset("mediation://mediation_default/meters/%2A/failed?run_type=debug&previous_status=5").uri == filtered
        assert Asset("mediation://mediation_default/meters/1001/COMPLETED?run_type=NORMAL").uri == COMPLETED

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
    def test_the_session_of_the_run_is_returned(self):
        assert triggering_session(context(event(COMPLETED, "R-1"))) == {"session_id": "R-1"}

    def test_the_newest_of_several_events_is_returned(self):
        events = [event(FAILED, "R-2", seconds=2), event(COMPLETED, "R-1"), event(COMPLETED, "R-3", seconds=3)]

        assert triggering_session(context(*events)) == {"session_id": "R-3"}

    def test_all_that_a_run_is_for_each_once(self):
        events = [event(FAILED, "R-1", seconds=2), event(COMPLETED, "R-1"), event(COMPLETED, "R-3", seconds=3)]

        assert triggering_sessions(context(*events)) == [{"session_id": "R-1"}, {"session_id": "R-3"}]

    def test_events_of_other_assets_are_ignored(self):
        events = [event("s3://bucket/key", "R-9", seconds=9), event(COMPLETED, "R-1")]

        assert triggering_session(context(*events)) == {"session_id": "R-1"}

    @pytest.mark.parametrize("given", [context(), {**context(), "triggering_asset_events": None}])
    def test_a_run_that_a_user_started_has_no_session(self, given):
        with pytest.raises(MediationMisconfigured, match="No session started the run manual__1 of load"):
            triggering_session(given)
