"""The signs of problems, each on and off: missing callouts are found by comparison with run replies and polls."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from airflow.models.trigger import Trigger
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal import health
from airflow_mediation_provider.journal.health import ConnectionHealth, connection_health, newest_callouts, unreported
from airflow_mediation_provider.journal.receipts import acknowledge_unparsed
from airflow_mediation_provider.journal.tables import ReporterRow
from airflow_mediation_provider.journal.transaction import read
from tests.unit.journal.old_rows import NOW, concluded, is_in, keep, session_of, told, wait_of
from tests.unit.journal.plans import explained, uses_an_index, worked

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

QUIET = ConnectionHealth(
    conn_id="zuora",
    last_callout_at=None,
    unparsed=0,
    without_callouts=0,
    ends_without_callouts=(),
    silent=0,
    waiting=0,
    unseen=0,
)


@pytest.fixture(autouse=True)
def _journal(services: None, request: pytest.FixtureRequest) -> None:
    """On SQLite; the tests of counts and times on PostgreSQL too."""
    if "airflow_database" not in request.fixturenames:
        airflow_on: Callable[[str], str] = request.getfixturevalue("airflow_on")
        airflow_on(request.getfixturevalue("sqlite_database"))


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


def seen(conn_id: str = "zuora") -> ConnectionHealth:
    return read(partial(connection_health, conn_id=conn_id, now=NOW))


def trouble() -> dict[str, Any]:
    found = seen()
    return {
        name: getattr(found, name)
        for name in ConnectionHealth.__slots__
        if getattr(found, name) != getattr(QUIET, name)
    }


def run_reply(session_id: str, begun: datetime, **values: Any) -> Any:
    return session_of(session_id, begun, status="RUNNING", terminal=False, source="run", **values)


def poll(at: datetime, status: str, before: str | None = "RUNNING", **values: Any) -> Any:
    return told(None, at, **{"kind": "poll", "source": "poll", "status": status, "previous_status": before, **values})


@pytest.mark.usefixtures("airflow_database")
def test_a_quiet_connection_has_no_sign_also_beside_connections_with_signs() -> None:
    assert seen() == QUIET
    others: dict[str, Any] = {"conn_id": "other"}
    keep(
        told("R-0", ago(days=2), **others),
        told("R-1", ago(minutes=1), **others),
        told(None, ago(minutes=1), kind="unparsed", **others),
        run_reply("R-2", ago(hours=7), **others),
        poll(ago(days=9), "RUNNING", None, **others),
        poll(ago(minutes=10), "COMPLETED", **others),
        wait_of("w", seen_at=ago(minutes=1), **others),
        wait_of("v", seen_at=ago(minutes=9), **others),
    )
    assert seen() == QUIET
    assert seen("other") == ConnectionHealth(
        conn_id="other",
        last_callout_at=ago(minutes=1),
        unparsed=1,
        without_callouts=1,
        ends_without_callouts=("1001",),
        silent=1,
        waiting=2,
        unseen=1,
    )


def test_the_last_callout_is_a_parsed_one_of_the_last_week() -> None:
    keep(
        told("R-1", ago(days=8), notification_id="a"),
        told("R-1", ago(minutes=2), source="run", notification_id="b"),
        told("R-1", ago(minutes=1), source="history", notification_id="c"),
    )
    assert trouble() == {}
    keep(told("R-1", ago(days=6), notification_id="d"))
    assert trouble() == {"last_callout_at": ago(days=6)}


def test_unparsed_callouts_of_a_day_are_counted() -> None:
    keep(told(None, ago(hours=25), kind="unparsed"))
    assert trouble() == {}
    keep(told(None, ago(hours=23), kind="unparsed"), told(None, ago(hours=1), kind="unparsed"))
    assert trouble() == {"unparsed": 2}


def test_a_session_that_airflow_started_without_a_callout_is_counted() -> None:
    keep(run_reply("R-1", ago(minutes=4)), run_reply("R-2", ago(hours=25), last_observed_at=ago(hours=1)))
    assert trouble() == {}  # the one is too young, the other one too old
    keep(run_reply("R-3", ago(minutes=6)))
    assert trouble() == {"without_callouts": 1}


def test_a_callout_of_the_started_session_ends_the_sign() -> None:
    keep(session_of("R-1", ago(minutes=6), status="RUNNING", terminal=False, source="callout"))
    assert trouble() == {}


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELED", "TESTING_PASSED", "TESTING_FAILED"])
def test_an_end_that_only_a_poll_showed_is_a_sign(status: str) -> None:
    keep(poll(ago(hours=2), "RUNNING", None), poll(ago(minutes=6), status))
    assert trouble() == {"ends_without_callouts": ("1001",)}


def test_a_poll_is_no_sign_while_the_callout_may_still_arrive_or_without_an_end() -> None:
    keep(*(poll(ago(hours=26), "RUNNING", None, meter_id=meter) for meter in "123"))
    keep(
        poll(ago(minutes=4), "COMPLETED", meter_id="1"),
        poll(ago(minutes=6), "PAUSED", meter_id="2"),
        poll(ago(hours=25), "COMPLETED", meter_id="3"),
        # The first poll of a meter may show the end of a session of long ago.
        poll(ago(minutes=6), "COMPLETED", None, meter_id="4"),
    )
    assert trouble() == {}


def test_a_session_that_reached_that_end_around_that_time_explains_the_poll() -> None:
    keep(
        poll(ago(minutes=6), "COMPLETED"),
        poll(ago(hours=1), "RUNNING", "COMPLETED"),
        session_of("R-1", ago(minutes=30), status="FAILED"),
    )
    assert trouble() == {"ends_without_callouts": ("1001",)}
    # The end that the poll before that showed does not count for another one.
    keep(session_of("R-2", ago(hours=3), status="COMPLETED", last_observed_at=ago(minutes=70)))
    assert trouble() == {"ends_without_callouts": ("1001",)}
    keep(session_of("R-3", ago(hours=2), status="COMPLETED", last_observed_at=ago(minutes=50)))
    assert trouble() == {}


def test_a_callout_before_the_poll_that_shows_its_end_counts() -> None:
    """At a meter that runs once a week, the callout of the end arrives before the poll that would show it."""
    keep(
        poll(ago(days=7), "RUNNING", None),
        session_of("R-1", ago(days=7), status="COMPLETED", last_observed_at=ago(days=6.9)),
        poll(ago(minutes=30), "COMPLETED"),
    )
    assert trouble() == {}
    # The next end is a separate one, whose callout is missing.
    keep(poll(ago(minutes=20), "RUNNING", "COMPLETED"), poll(ago(minutes=10), "COMPLETED"))
    assert trouble() == {"ends_without_callouts": ("1001",)}


def test_an_end_is_no_sign_if_the_poll_before_was_pruned() -> None:
    """It was pruned."""
    keep(poll(ago(minutes=6), "COMPLETED"))
    assert trouble() == {}


def test_the_first_end_is_a_sign_if_all_callouts_are_lost() -> None:
    """Regardless of how often the meter runs."""
    for number in range(4):
        keep(session_of(f"R-{number}", ago(hours=10 - number), status="COMPLETED"))
        keep(poll(ago(hours=10 - number), "COMPLETED"), poll(ago(hours=9.5 - number), "RUNNING", "COMPLETED"))
    assert trouble() == {}
    keep(poll(ago(hours=6), "COMPLETED"))
    assert trouble() == {"ends_without_callouts": ("1001",)}


def test_only_the_last_poll_of_an_end_of_each_meter_counts() -> None:
    """The repair of the last one also repairs an earlier one."""
    keep(*(poll(ago(hours=26), "RUNNING", None, meter_id=meter) for meter in ("1", "2", "10")))
    keep(
        poll(ago(hours=20), "FAILED", meter_id="1"),
        poll(ago(minutes=6), "COMPLETED", meter_id="1"),
        session_of("R-1", ago(minutes=6), meter_id="1"),
        poll(ago(minutes=20), "FAILED", meter_id="2"),
        poll(ago(minutes=7), "COMPLETED", meter_id="10"),
    )
    assert trouble() == {"ends_without_callouts": ("10", "2")}


def test_a_lost_end_does_not_count_any_more_once_a_later_session_has_a_callout() -> None:
    keep(poll(ago(hours=3), "RUNNING", None), poll(ago(hours=2), "COMPLETED"))
    keep(session_of("R-1", ago(hours=4), status="RUNNING", terminal=False))
    assert trouble() == {"ends_without_callouts": ("1001",)}
    keep(session_of("R-2", ago(hours=1), status="RUNNING", terminal=False, source="run"))
    assert "ends_without_callouts" in trouble()
    keep(session_of("R-3", ago(minutes=9), status="RUNNING", terminal=False))
    assert trouble() == {}


def test_a_session_that_a_task_concluded_is_not_silent() -> None:
    keep(session_of("R-1", ago(hours=7), status="RUNNING", terminal=False), concluded("R-2", ago(hours=8)))
    assert trouble() == {"silent": 1}


def test_an_acknowledged_unparsed_callout_is_no_problem_any_more() -> None:
    keep(*(told(None, ago(hours=1), kind="unparsed", id=number) for number in (1, 2)))
    assert acknowledge_unparsed("zuora", "alice", NOW, row_id=1) == 1
    assert trouble() == {"unparsed": 1}


def test_any_number_of_acknowledged_callouts_costs_the_same(
    sqlite_database: str, airflow_on: Callable[[str], str]
) -> None:
    airflow_on(sqlite_database)
    keep(told(None, NOW, kind="unparsed"))
    steps = []
    for _ in range(2):
        keep(*(told(None, ago(hours=1), kind="unparsed", acknowledged_at=NOW) for _ in range(1_500)))
        with worked() as work:
            assert trouble() == {"unparsed": 1}
        steps += work
    assert steps[1] < 1.05 * steps[0]


def test_a_running_session_without_a_report_for_hours_is_silent() -> None:
    keep(
        session_of("R-1", ago(hours=5), status="RUNNING", terminal=False),
        session_of("R-2", ago(hours=9), status="COMPLETED"),
        session_of("R-3", ago(hours=9), status="RUNNING", terminal=False, last_observed_at=ago(hours=1)),
    )
    assert trouble() == {}
    keep(session_of("R-4", ago(hours=7), status="RUNNING", terminal=False))
    assert trouble() == {"silent": 1}


@pytest.mark.usefixtures("airflow_database")
def test_a_wait_without_reports_has_lost_its_process() -> None:
    keep(
        wait_of("w", seen_at=ago(minutes=2)),
        wait_of("x", seen_at=ago(minutes=3)),
        wait_of("ended", seen_at=ago(minutes=9), ended_at=ago(minutes=9), outcome="met"),
    )
    assert trouble() == {"waiting": 2}
    keep(wait_of("y", seen_at=ago(minutes=4)), wait_of("z", seen_at=ago(days=2)))
    assert trouble() == {"waiting": 4, "unseen": 2}
    # A triggerer that shuts down leaves its waits, and the tasks wait on.
    keep(wait_of("left", seen_at=ago(minutes=4), outcome="left"))
    assert trouble() == {"waiting": 5, "unseen": 3}


@pytest.mark.usefixtures("airflow_database")
def test_a_wait_is_reported_as_long_as_its_reporter_is() -> None:
    keep(
        ReporterRow(id="live", conn_id="zuora", seen_at=ago(minutes=1)),
        ReporterRow(id="dead", conn_id="zuora", seen_at=ago(minutes=4)),
        wait_of("w", seen_at=ago(days=2), reporter="live"),
        wait_of("x", seen_at=ago(days=2), reporter="dead"),
        wait_of("y", seen_at=ago(minutes=1), reporter="pruned"),
    )
    assert trouble() == {"waiting": 3, "unseen": 1}


@pytest.mark.usefixtures("airflow_database")
def test_a_wait_whose_task_is_gone_waits_no_more() -> None:
    """`airflow tasks test` and `airflow db clean` delete it, and it is deleted with its run."""
    keep(wait_of("w", seen_at=ago(minutes=1)), wait_of("x", seen_at=ago(minutes=9)), tasks=False)
    assert trouble() == {}


@pytest.mark.usefixtures("airflow_database")
@pytest.mark.parametrize(
    ("state", "try_number", "sign"),
    [
        ("deferred", 1, {"waiting": 1, "unseen": 1}),
        ("scheduled", 1, {"waiting": 1}),  # its trigger has fired
        ("deferred", 2, {}),  # the wait of an earlier try
        ("success", 1, {}),
        ("failed", 1, {}),
        (None, 1, {}),  # cleared
    ],
)
def test_a_wait_of_a_triggerer_is_missed_as_long_as_its_task_is_deferred(
    state: str | None, try_number: int, sign: dict[str, Any]
) -> None:
    wait = wait_of("w", seen_at=ago(minutes=4))
    is_in(state, wait, try_number=try_number)
    keep(wait)
    assert trouble() == sign


@pytest.mark.parametrize(
    ("state", "sign"),
    [
        ("running", {"waiting": 1}),
        ("up_for_reschedule", {"waiting": 1}),
        ("failed", {}),
        ("deferred", {"waiting": 1, "unseen": 1}),  # and no triggerer has taken it over
    ],
)
def test_a_task_on_a_worker_reports_with_each_poll(state: str, sign: dict[str, Any]) -> None:
    """And Airflow itself detects when its process dies."""
    wait = wait_of("w", seen_at=ago(hours=1), mode="worker")
    is_in(state, wait)
    keep(wait)
    assert trouble() == sign


def deferred(task_id: str, *, since: datetime, conn_id: str = "zuora", state: str = "deferred", path: str = "") -> None:
    """Create a task of Airflow with a trigger of ours."""
    ours = "airflow_mediation_provider.triggers.meter_session.MeterSessionTrigger"
    with Session(settings.get_engine()) as session:
        trigger = Trigger(path or ours, {"mediation_conn_id": conn_id, "wait": {}}, created_date=since)
        session.add(trigger)
        session.commit()
        is_in(state, wait_of(task_id, task_id=task_id), trigger_id=trigger.id)


def unreported_tasks() -> dict[str, int]:
    return dict(read(partial(unreported, now=NOW)).tasks)


@pytest.mark.usefixtures("airflow_database")
def test_deferred_tasks_that_no_process_reports_are_counted_by_connection() -> None:
    deferred("a", since=ago(minutes=4))
    deferred("b", since=ago(hours=4))
    deferred("other", since=ago(minutes=4), conn_id="other")
    deferred("young", since=ago(minutes=2))
    deferred("resumed", since=ago(minutes=4), state="scheduled")
    deferred("foreign", since=ago(minutes=4), path="airflow_mediation_provider.triggersXmeter_session.Other")
    assert unreported_tasks() == {"zuora": 2, "other": 1}

    # One whose reports ended is counted with the rows of the journal.
    keep(wait_of("a", task_id="a", seen_at=ago(minutes=9)), wait_of("b", task_id="b", seen_at=NOW))
    assert unreported_tasks() == {"other": 1}
    assert trouble() == {"waiting": 2, "unseen": 1}


def test_of_many_unreported_tasks_the_oldest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MOST", 2)
    for conn_id, minutes in {"third": 4, "first": 6, "second": 5}.items():
        deferred(conn_id, since=ago(minutes=minutes), conn_id=conn_id)

    found = read(partial(unreported, now=NOW))

    assert (dict(found.tasks), found.more) == ({"first": 1, "second": 1}, True)
    monkeypatch.setattr(health, "MOST", 3)
    assert not read(partial(unreported, now=NOW)).more


def test_the_report_of_another_try_does_not_count() -> None:
    deferred("a", since=ago(minutes=4))
    keep(wait_of("a", task_id="a", try_number=0, seen_at=NOW))
    assert unreported_tasks() == {"zuora": 1}


def test_a_trigger_that_cannot_be_decrypted_hides_no_other_one() -> None:
    deferred("a", since=ago(minutes=4))
    deferred("b", since=ago(minutes=4))
    with Session(settings.get_engine()) as session:
        session.query(Trigger).order_by(Trigger.id).first().encrypted_kwargs = "gAAAA"
        session.commit()
    assert unreported_tasks() == {"zuora": 1}


def test_a_callout_of_a_later_session_ends_the_sign_of_missing_callouts() -> None:
    keep(run_reply("R-1", ago(hours=3)), told("R-0", ago(days=2)))
    assert trouble()["without_callouts"] == 1
    keep(session_of("R-2", ago(hours=2), meter_id="2"))
    assert trouble()["without_callouts"] == 1  # of another meter
    keep(session_of("R-3", ago(hours=2)))
    assert "without_callouts" not in trouble()


def test_a_callout_before_the_run_reply_counts() -> None:
    """The reply may be the last report of a session."""
    keep(run_reply("R-1", ago(hours=1)), told("R-0", ago(days=2)))
    assert trouble()["without_callouts"] == 1
    keep(told("R-1", ago(hours=1), source="history"))
    assert "without_callouts" not in trouble()


def test_sessions_before_callouts_were_set_up_are_no_sign() -> None:
    keep(run_reply("R-1", ago(hours=3)))
    assert trouble() == {"without_callouts": 1}
    keep(told("R-2", ago(hours=2), meter_id="2"))
    assert "without_callouts" not in trouble()
    keep(run_reply("R-3", ago(hours=1)))
    assert trouble()["without_callouts"] == 1


def test_counts_end_at_a_hundred() -> None:
    keep(*(told(None, ago(hours=1), kind="unparsed", notification_id=f"n{number}") for number in range(130)))
    assert trouble() == {"unparsed": 100}


@pytest.mark.usefixtures("airflow_database")
def test_the_newest_callouts_have_their_bodies_and_the_newest_comes_first() -> None:
    keep(
        *(
            told("R-1", ago(minutes=number), body={"number": number}, notification_id=f"n{number}")
            for number in range(70)
        ),
        told("R-1", ago(minutes=-1), source="run"),
        told("R-1", ago(minutes=-1), kind="periodic"),
        told("R-1", ago(minutes=-1), conn_id="other"),
    )
    newest = read(partial(newest_callouts, conn_id="zuora"))
    assert [each.body["number"] for each in newest] == list(range(59))
    assert newest[0].received_at == ago(minutes=0)


def test_each_query_uses_an_index() -> None:
    keep(poll(ago(days=7), "RUNNING", None), poll(ago(minutes=6), "COMPLETED"))
    with explained() as plans:
        seen()
        read(partial(newest_callouts, conn_id="zuora"))
    assert len(plans) == 9
    assert [each for each in plans if not uses_an_index(each[1])] == []
    reached, later = [
        step
        for statement, plan in plans
        if statement.startswith("SELECT (EXISTS")
        for step in plan
        if "mediation_" in step
    ]
    (of_waits,) = [
        {step for step in plan if " mediation_wait " in step} for _, plan in plans if "mediation_wait" in str(plan)
    ]
    # The index of sessions leads to all waits that the connection ever had.
    assert of_waits == {"SEARCH mediation_wait USING INDEX ix_mediation_wait_ended_at (ended_at=?)"}
    # Any other index leads to all sessions of years.
    assert "(conn_id=? AND terminal=? AND last_observed_at>?)" in reached
    assert "(conn_id=? AND meter_id=? AND begun_at>?)" in later
