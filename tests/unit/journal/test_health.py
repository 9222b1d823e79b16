"""The signs of trouble, each on and off: what is missed is held against what Airflow learned by itself."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.journal.health import Signs, signs
from airflow_mediation_provider.journal.transaction import read
from tests.unit.journal.old_rows import NOW, is_in, keep, session_of, told, wait_of
from tests.unit.journal.plans import explained, uses_an_index

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

QUIET = Signs(
    conn_id="zuora",
    last_callout_at=None,
    unread=0,
    unheard=0,
    unheard_ends=(),
    silent=0,
    waiting=0,
    unseen=0,
)


@pytest.fixture(autouse=True)
def _journal(request: pytest.FixtureRequest) -> None:
    """On SQLite; the tests of counts and times on PostgreSQL too."""
    if "airflow_database" not in request.fixturenames:
        airflow_on: Callable[[str], str] = request.getfixturevalue("airflow_on")
        airflow_on(request.getfixturevalue("sqlite_database"))


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


def seen(conn_id: str = "zuora") -> Signs:
    return read(partial(signs, conn_id=conn_id, now=NOW))


def trouble() -> dict[str, Any]:
    found = seen()
    return {name: getattr(found, name) for name in Signs.__slots__ if getattr(found, name) != getattr(QUIET, name)}


def run_reply(session_id: str, begun: datetime, **values: Any) -> Any:
    return session_of(session_id, begun, status="RUNNING", terminal=False, source="run", **values)


def poll(at: datetime, status: str, before: str | None = "RUNNING", **values: Any) -> Any:
    return told(None, at, **{"kind": "poll", "source": "poll", "status": status, "previous_status": before, **values})


@pytest.mark.usefixtures("airflow_database")
def test_a_quiet_connection_has_no_sign_and_those_of_others_are_not_its_own() -> None:
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
    assert seen("other") == Signs(
        conn_id="other",
        last_callout_at=ago(minutes=1),
        unread=1,
        unheard=1,
        unheard_ends=("1001",),
        silent=1,
        waiting=2,
        unseen=1,
    )


def test_the_last_callout_is_one_that_could_be_read_and_came_within_a_week() -> None:
    keep(
        told("R-1", ago(days=8), notification_id="a"),
        told("R-1", ago(minutes=2), source="run", notification_id="b"),
        told("R-1", ago(minutes=1), source="history", notification_id="c"),
    )
    assert trouble() == {}
    keep(told("R-1", ago(days=6), notification_id="d"))
    assert trouble() == {"last_callout_at": ago(days=6)}


def test_callouts_of_a_day_that_nobody_could_read() -> None:
    keep(told(None, ago(hours=25), kind="unparsed"))
    assert trouble() == {}
    keep(told(None, ago(hours=23), kind="unparsed"), told(None, ago(hours=1), kind="unparsed"))
    assert trouble() == {"unread": 2}


def test_a_session_that_airflow_started_and_no_callout_told_of() -> None:
    keep(run_reply("R-1", ago(minutes=4)), run_reply("R-2", ago(hours=25), last_observed_at=ago(hours=1)))
    assert trouble() == {}  # the one is too young, the other one is history
    keep(run_reply("R-3", ago(minutes=6)))
    assert trouble() == {"unheard": 1}


def test_a_callout_of_it_ends_that() -> None:
    keep(session_of("R-1", ago(minutes=6), status="RUNNING", terminal=False, source="callout"))
    assert trouble() == {}


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELED", "TESTING_PASSED", "TESTING_FAILED"])
def test_an_end_that_only_a_poll_saw(status: str) -> None:
    keep(poll(ago(hours=2), "RUNNING", None), poll(ago(minutes=6), status))
    assert trouble() == {"unheard_ends": ("1001",)}


def test_a_poll_is_no_sign_while_the_callout_may_still_come_or_where_it_shows_no_end() -> None:
    keep(*(poll(ago(hours=26), "RUNNING", None, meter_id=meter) for meter in "123"))
    keep(
        poll(ago(minutes=4), "COMPLETED", meter_id="1"),
        poll(ago(minutes=6), "PAUSED", meter_id="2"),
        poll(ago(hours=25), "COMPLETED", meter_id="3"),
        # The first poll of a meter may show the end of a session of long ago.
        poll(ago(minutes=6), "COMPLETED", None, meter_id="4"),
    )
    assert trouble() == {}


def test_a_session_that_came_to_that_end_around_that_time_explains_the_poll() -> None:
    keep(
        poll(ago(minutes=6), "COMPLETED"),
        poll(ago(hours=1), "RUNNING", "COMPLETED"),
        session_of("R-1", ago(minutes=30), status="FAILED"),
    )
    assert trouble() == {"unheard_ends": ("1001",)}
    # The end that the poll before that showed is no other one's.
    keep(session_of("R-2", ago(hours=3), status="COMPLETED", last_observed_at=ago(minutes=70)))
    assert trouble() == {"unheard_ends": ("1001",)}
    keep(session_of("R-3", ago(hours=2), status="COMPLETED", last_observed_at=ago(minutes=50)))
    assert trouble() == {}


def test_an_end_of_long_ago_that_a_poll_shows_only_now_was_told_at_its_time() -> None:
    """Of a meter that runs once a week, the callout of the end comes before the poll that would have seen it."""
    keep(
        poll(ago(days=7), "RUNNING", None),
        session_of("R-1", ago(days=7), status="COMPLETED", last_observed_at=ago(days=6.9)),
        poll(ago(minutes=30), "COMPLETED"),
    )
    assert trouble() == {}
    # The next end is one of its own, whose callout is missed.
    keep(poll(ago(minutes=20), "RUNNING", "COMPLETED"), poll(ago(minutes=10), "COMPLETED"))
    assert trouble() == {"unheard_ends": ("1001",)}


def test_where_nobody_knows_when_the_poll_before_was_an_end_says_nothing() -> None:
    """It was pruned."""
    keep(poll(ago(minutes=6), "COMPLETED"))
    assert trouble() == {}


def test_where_all_ends_are_lost_the_first_one_shows() -> None:
    """However often the meter runs."""
    for number in range(4):
        keep(session_of(f"R-{number}", ago(hours=10 - number), status="COMPLETED"))
        keep(poll(ago(hours=10 - number), "COMPLETED"), poll(ago(hours=9.5 - number), "RUNNING", "COMPLETED"))
    assert trouble() == {}
    keep(poll(ago(hours=6), "COMPLETED"))
    assert trouble() == {"unheard_ends": ("1001",)}


def test_of_each_meter_the_last_poll_of_an_end_counts() -> None:
    """An earlier one that was missed is repaired by what repairs the last."""
    keep(*(poll(ago(hours=26), "RUNNING", None, meter_id=meter) for meter in ("1", "2", "10")))
    keep(
        poll(ago(hours=20), "FAILED", meter_id="1"),
        poll(ago(minutes=6), "COMPLETED", meter_id="1"),
        session_of("R-1", ago(minutes=6), meter_id="1"),
        poll(ago(minutes=20), "FAILED", meter_id="2"),
        poll(ago(minutes=7), "COMPLETED", meter_id="10"),
    )
    assert trouble() == {"unheard_ends": ("10", "2")}


def test_a_session_that_goes_on_and_of_which_nothing_was_told_for_hours() -> None:
    keep(
        session_of("R-1", ago(hours=5), status="RUNNING", terminal=False),
        session_of("R-2", ago(hours=9), status="COMPLETED"),
        session_of("R-3", ago(hours=9), status="RUNNING", terminal=False, last_observed_at=ago(hours=1)),
    )
    assert trouble() == {}
    keep(session_of("R-4", ago(hours=7), status="RUNNING", terminal=False))
    assert trouble() == {"silent": 1}


@pytest.mark.usefixtures("airflow_database")
def test_a_wait_is_seen_or_has_lost_its_process() -> None:
    keep(
        wait_of("w", seen_at=ago(minutes=2)),
        wait_of("x", seen_at=ago(minutes=3)),
        wait_of("ended", seen_at=ago(minutes=9), ended_at=ago(minutes=9), outcome="met"),
    )
    assert trouble() == {"waiting": 2}
    keep(wait_of("y", seen_at=ago(minutes=4)), wait_of("z", seen_at=ago(days=2)))
    assert trouble() == {"waiting": 3, "unseen": 1}  # the last one was given up long ago


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
    ("state", "sign"), [("running", {"waiting": 1}), ("up_for_reschedule", {"waiting": 1}), ("failed", {})]
)
def test_a_task_on_a_worker_reports_when_it_looks(state: str, sign: dict[str, Any]) -> None:
    """And Airflow itself sees whether its process lives."""
    wait = wait_of("w", seen_at=ago(hours=1), mode="worker")
    is_in(state, wait)
    keep(wait)
    assert trouble() == sign


def test_callouts_that_arrive_again_forgive_what_was_not_told() -> None:
    keep(run_reply("R-1", ago(hours=3)), told("R-0", ago(days=2)))
    assert trouble()["unheard"] == 1
    keep(session_of("R-2", ago(hours=2), meter_id="2"))
    assert trouble()["unheard"] == 1  # of another meter
    keep(session_of("R-3", ago(hours=2)))
    assert "unheard" not in trouble()


def test_a_callout_that_came_before_the_run_reply_counts() -> None:
    """The reply may be the last thing that was told of a session."""
    keep(run_reply("R-1", ago(hours=1)), told("R-0", ago(days=2)))
    assert trouble()["unheard"] == 1
    keep(told("R-1", ago(hours=1), source="history"))
    assert "unheard" not in trouble()


def test_what_ran_before_callouts_were_set_up_is_not_missed() -> None:
    keep(run_reply("R-1", ago(hours=3)))
    assert trouble() == {"unheard": 1}
    keep(told("R-2", ago(hours=2), meter_id="2"))
    assert "unheard" not in trouble()
    keep(run_reply("R-3", ago(hours=1)))
    assert trouble()["unheard"] == 1


def test_counts_end_at_a_hundred() -> None:
    keep(*(told(None, ago(hours=1), kind="unparsed", notification_id=f"n{number}") for number in range(130)))
    assert trouble() == {"unread": 100}


def test_each_question_uses_an_index() -> None:
    keep(poll(ago(days=7), "RUNNING", None), poll(ago(minutes=6), "COMPLETED"))
    with explained() as plans:
        seen()
    assert len(plans) == 7
    assert [each for each in plans if not uses_an_index(each[1])] == []
    [looked_up] = [
        step
        for statement, plan in plans
        if statement.startswith("SELECT EXISTS")
        for step in plan
        if "mediation_" in step
    ]
    assert "(terminal=? AND last_observed_at>?)" in looked_up  # any other one leads to all sessions of years
