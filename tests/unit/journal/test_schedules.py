"""Schedules on sessions by Airflow's own scheduler: one run for each session and arrival, whatever the schedule."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings as airflow_settings
from airflow.models.asset import AssetModel
from airflow.sdk import Asset, PartitionedAssetTimetable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from airflow_mediation_provider.assets import ANY_METER, on_meter_session
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.triggered_runs import NeverStarted, never_started
from airflow_mediation_provider.protocol.sessions.asset_uri import asset_uri
from airflow_mediation_provider.protocol.status import DEBUG_ONLY
from tests.unit.condition_table import ARRIVALS, ROWS
from tests.unit.journal.scheduling import CONN, Airflow, change, poll, tell

if TYPE_CHECKING:
    from collections.abc import Callable

FOLLOW = "write schedule=PartitionedAssetTimetable(assets=...)"
LIVES = [
    ["INITIALIZING", "RUNNING", "COMPLETED"],
    ["INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "FAILED"],
    ["RUNNING", "COMPLETED", "RUNNING", "COMPLETED"],
    ["RUNNING", "USAGE_PUSHING", "CANCELED"],
]
TESTS = [["INITIALIZING", "TESTING", "TESTING_FAILED"], ["TESTING", "TESTING_PASSED"], ["TESTING", "CANCELED"]]
STATUSES = st.sampled_from(sorted({status for life in (*LIVES, *TESTS) for status in life}))
SEVERAL = st.lists(STATUSES, min_size=1, max_size=3, unique=True)
CONDITIONS = st.fixed_dictionaries(
    {"meter_id": st.just(ANY_METER) | st.lists(st.sampled_from("12"), min_size=1, unique=True), "statuses": SEVERAL},
    optional={"previous_statuses": SEVERAL, "run_type": st.sampled_from(["DEBUG", ["NORMAL", "DEBUG"]])},
)


def fits(condition: dict[str, Any], meter: str, before: str | None, status: str, *, debug: bool) -> bool:
    """What the documents promise."""
    wanted = condition.get("run_type") or ["DEBUG" if status in DEBUG_ONLY else "NORMAL"]
    return (
        (condition["meter_id"] == ANY_METER or meter in condition["meter_id"])
        and status in condition["statuses"]
        and ("previous_statuses" not in condition or before in condition["previous_statuses"])
        and ("DEBUG" if debug else "NORMAL") in wanted
    )


@pytest.fixture
def airflow(sqlite_database: str, airflow_on: Callable[[str], str]) -> Airflow:
    airflow_on(sqlite_database)
    return Airflow()


@pytest.fixture
def each_airflow(airflow_database: str) -> Airflow:
    """On SQLite and on PostgreSQL."""
    del airflow_database
    return Airflow()


EXAMPLES = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    conditions=st.lists(CONDITIONS, min_size=1, max_size=3),
    lives=st.lists(
        st.tuples(st.sampled_from("123"), st.sampled_from([*LIVES, *TESTS]), st.lists(st.booleans(), min_size=5)),
        min_size=1,
        max_size=3,
    ),
)
def test_one_run_for_each_session_and_arrival_unless_its_run_is_pending(
    airflow: Airflow, conditions: list[dict[str, Any]], lives: list[tuple[str, list[str], list[bool]]]
) -> None:
    number = next(EXAMPLES)
    conn, dag_id = f"tenant{number}", f"load{number}"
    schedule = None
    for condition in conditions:
        each = on_meter_session(**condition, mediation_conn_id=conn)
        schedule = each if schedule is None else schedule | each
    airflow.know(dag_id, schedule)
    expected: Counter[str] = Counter()
    arrived: Counter[str] = Counter()
    for session, (meter, life, turns) in enumerate(lives):
        debug, pending, key = life in TESTS, False, f"R-{session}"
        for at, (before, status, turn) in enumerate(zip([None, *life], life, turns, strict=False)):
            if before == status:
                continue
            tell(change(key, status, before, at=at, debug=debug, meter=meter), conn=conn)
            if any(fits(condition, meter, before, status, debug=debug) for condition in conditions):
                arrived[key] += 1
                expected[key] += not pending
                pending = True
            if turn:
                airflow.schedule()
                pending = False
        airflow.schedule()

    assert Counter(airflow.runs(dag_id)) == expected
    # No arrival is lost: each is an event of some run, once.
    found = Counter(
        session
        for events in airflow.sessions_of(dag_id)
        for session, _, _ in {(each["session_id"], each["status"], each["observed_at"]) for each in events}
    )
    assert found == arrived


def test_a_session_that_fits_several_assets_of_a_dag_starts_one_run(each_airflow: Airflow) -> None:
    either = on_meter_session(ANY_METER, ["FAILED", "COMPLETED"]) | on_meter_session("1", "FAILED")
    either |= on_meter_session(["1", "2"], "FAILED", previous_statuses="RUNNING")
    each_airflow.know("alert", either)
    tell(change("R-1", "FAILED"), change("R-2", "FAILED", "PAUSED"), change("R-3", "FAILED", meter="9"))

    assert each_airflow.runs("alert") == ["R-1", "R-2", "R-3"]
    assert [len(events) for events in each_airflow.sessions_of("alert")] == [3, 2, 1]


def test_a_previous_status_that_comes_later_starts_what_asks_for_it_once(each_airflow: Airflow) -> None:
    each_airflow.know("filtered", on_meter_session("1", "COMPLETED", previous_statuses="RUNNING"))
    each_airflow.know("other", on_meter_session("1", "COMPLETED", previous_statuses="PAUSED"))
    each_airflow.know("plain", on_meter_session("1", "COMPLETED"))
    tell(change("R-1", "COMPLETED", None))
    assert (each_airflow.runs("plain"), each_airflow.runs("filtered")) == (["R-1"], [])
    for at in (1, 2):
        tell(change("R-1", "COMPLETED", "RUNNING", at=at))

    runs = {dag_id: each_airflow.runs(dag_id) for dag_id in ("plain", "filtered", "other")}
    assert runs == {"plain": ["R-1"], "filtered": ["R-1"], "other": []}


def test_an_arrival_before_the_run_is_made_joins_it_and_a_later_one_starts_another(each_airflow: Airflow) -> None:
    each_airflow.know("load", on_meter_session(ANY_METER, ["RUNNING", "COMPLETED"]))
    tell(change("R-1", "RUNNING", "INITIALIZING"))
    tell(change("R-1", "COMPLETED", at=1))
    assert each_airflow.runs("load") == ["R-1"]
    tell(change("R-1", "RUNNING", "COMPLETED", at=2))

    assert each_airflow.runs("load") == ["R-1", "R-1"]
    [first, second] = sorted(each_airflow.sessions_of("load"), key=len, reverse=True)
    assert [each["status"] for each in first] == ["RUNNING", "COMPLETED"]
    assert [each["status"] for each in second] == ["RUNNING"]


def test_a_test_that_is_canceled_starts_what_asks_for_it_also_by_a_poll(airflow: Airflow) -> None:
    airflow.know("tests", on_meter_session("1", "CANCELED", run_type="DEBUG", poll_interval=60))
    airflow.know("live", on_meter_session("1", "CANCELED", poll_interval=60))
    tell(change("R-1", "CANCELED", "TESTING", debug=True), change("R-2", "CANCELED"))
    for at, status in enumerate(["TESTING", "CANCELED"]):
        tell(poll(status, at))

    by_poll, told = airflow.runs("tests")[-1], airflow.runs("tests")[:-1]
    assert (told, airflow.runs("live")) == (["R-1"], ["R-2"])
    assert by_poll.startswith("poll-1-CANCELED-")
    assert airflow.sessions_of("tests")[-1][0]["run_type"] == "DEBUG"


def test_a_schedule_on_both_run_types_starts_for_either_also_by_a_poll(airflow: Airflow) -> None:
    airflow.know("any", on_meter_session("1", "CANCELED", run_type=["NORMAL", "DEBUG"], poll_interval=60))
    tell(change("R-1", "CANCELED", "TESTING", debug=True), change("R-2", "CANCELED"))
    for at, status in enumerate(["TESTING", "CANCELED", "RUNNING", "CANCELED"]):
        tell(poll(status, at))

    assert airflow.runs("any")[:2] == ["R-1", "R-2"]
    by_polls = [events[0]["run_type"] for events in airflow.sessions_of("any")[2:]]
    assert by_polls == ["DEBUG", "NORMAL"]


def test_a_session_of_an_undocumented_run_type_starts_nothing(airflow: Airflow) -> None:
    airflow.know("any", on_meter_session(ANY_METER, "FAILED"))
    airflow.know("tests", on_meter_session(ANY_METER, "FAILED", run_type="DEBUG"))
    tell(change("R-1", "FAILED", run_type="CANARY"))

    assert (airflow.runs("any"), airflow.runs("tests")) == ([], [])


def test_any_meter_is_of_its_own_connection(airflow: Airflow) -> None:
    airflow.know("eu", on_meter_session(ANY_METER, "FAILED", mediation_conn_id="eu"))
    airflow.know("here", on_meter_session(ANY_METER, "FAILED"))
    tell(change("R-1", "FAILED", meter="made tomorrow"), conn="eu")

    assert (airflow.runs("eu"), airflow.runs("here")) == (["R-1"], [])


def test_a_callout_finds_its_assets_with_the_same_statements_among_any_number_of_them(airflow: Airflow) -> None:
    def statements(session_id: str) -> list[str]:
        made: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            made.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        tell(change(session_id, "FAILED"))
        event.remove(engine, "before_cursor_execute", note)
        return made

    engine = airflow_settings.get_engine()
    airflow.know("any", on_meter_session(ANY_METER, "FAILED", previous_statuses="RUNNING"))
    statements("R-1")  # fills caches
    few = statements("R-2")
    addresses = [
        asset_uri(CONN, meter, "FAILED", previous, "DEBUG")
        for meter in map(str, range(100))
        for previous in ("RUNNING", "PAUSED", None)
    ]
    with airflow_settings.NonScopedSession() as session:
        session.add_all(AssetModel(name=each, uri=each, group="asset") for each in addresses)
        session.commit()

    assert statements("R-3") == few
    assert airflow.runs("any") == ["R-1", "R-2", "R-3"]


def test_dags_that_sessions_never_start_are_named(each_airflow: Airflow) -> None:
    """An event with a partition key queues partitioned schedules only, and a run hands its key on to its outlets."""
    address, loaded = asset_uri(CONN, "1", "COMPLETED"), Asset("loaded")
    each_airflow.know("load", on_meter_session("1", "COMPLETED"), outlets=[loaded])
    each_airflow.know("any", on_meter_session(ANY_METER, "FAILED", mediation_conn_id="eu"))
    each_airflow.know("plain", [Asset(address), Asset("other")])
    each_airflow.know("gone", Asset(address))
    each_airflow.alter("gone", is_stale=True)
    each_airflow.know("follows", loaded)
    each_airflow.know("follows_by_key", PartitionedAssetTimetable(assets=loaded))
    each_airflow.know("elsewhere", Asset("other"), outlets=[Asset("more")])
    each_airflow.know("follows_elsewhere", Asset("more"))

    assert read(never_started) == [
        NeverStarted("follows", CONN, "runs of load have partition keys: " + FOLLOW),
        NeverStarted("plain", CONN, "write schedule=on_meter_session(...) instead of an asset"),
    ]
    tell(change("R-1", "COMPLETED"))
    assert (each_airflow.runs("load"), each_airflow.runs("plain")) == (["R-1"], [])


def test_each_schedule_of_the_documentation_starts_for_what_it_names(each_airflow: Airflow) -> None:
    names = {"ANY_METER": ANY_METER, "on_meter_session": on_meter_session}
    for number, row in enumerate(ROWS):
        each_airflow.know(f"row{number}", eval(row.cells["schedule"], names))
    for name, arrival in ARRIVALS.items():
        told = {"before": "RUNNING", "meter": "1001", **arrival}
        conn = told.pop("conn", CONN)
        tell(change(name, told.pop("status"), told.pop("before"), **told), conn=conn)
    each_airflow.schedule()

    found = {row.what: each_airflow.runs(f"row{number}") for number, row in enumerate(ROWS)}
    assert found == {row.what: sorted(row.fits) for row in ROWS}
