"""The reports of one session, the polls of its meter meanwhile, and the unparsed callouts."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.journal.session_list import (
    ListedSession,
    SessionKey,
    TimelineEntry,
    find_session,
    timeline,
)
from airflow_mediation_provider.journal.transaction import read
from tests.unit.journal.old_rows import NOW, keep, session_of, told
from tests.unit.journal.plans import explained, uses_an_index

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime


def at(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


def the_session() -> ListedSession:
    found = read(partial(find_session, key=SessionKey("zuora", "1001", "R-1")))
    assert found is not None
    return found


def its_timeline() -> tuple[list[TimelineEntry], bool]:
    return read(partial(timeline, listed=the_session()))


def poll(minutes: float, status: str, **values: Any) -> Any:
    return told(None, at(minutes), **{"kind": "poll", "source": "poll", "status": status, **values})


@pytest.mark.usefixtures("airflow_database")
def test_the_latest_comes_first_and_other_sessions_are_not_shown() -> None:
    keep(
        session_of("R-1", at(0), last_observed_at=at(30), ended_at=at(30)),
        session_of("R-1", at(0), conn_id="other"),
        told("R-1", at(30), previous_status="RUNNING", status="COMPLETED", notification_id="c"),
        told("R-1", at(1), status="RUNNING", notification_id="b", source="history", started_at=at(0)),
        told("R-1", at(10), kind="periodic", status=None, notification_id="p"),
        told("R-1", at(2), conn_id="other", status="PAUSED"),
        told("R-1", at(2), meter_id="7", status="PAUSED"),
        told("R-2", at(2), status="PAUSED"),
        told(None, at(3), kind="unparsed", status=None),
    )
    found, cut = its_timeline()
    assert [(each.kind, each.previous_status, each.status, each.source, each.notification_id) for each in found] == [
        ("status_change", "RUNNING", "COMPLETED", "callout", "c"),
        ("periodic", None, None, "callout", "p"),
        ("status_change", None, "RUNNING", "history", "b"),
    ]
    assert [each.observed_at for each in found] == [at(30), at(10), at(1)]
    assert found[-1].started_at == at(0)
    assert cut is False


@pytest.mark.usefixtures("airflow_database")
def test_polls_of_the_meter_are_shown_from_its_start_until_shortly_after_its_end() -> None:
    keep(
        session_of("R-1", at(0), last_observed_at=at(30), ended_at=at(30)),
        *(poll(minutes, f"S{minutes}") for minutes in (-1, 0, 20, 40, 41)),
        poll(20, "OTHER", meter_id="7"),
        poll(20, "OTHER", conn_id="other"),
    )
    found, _ = its_timeline()
    assert [each.status for each in found] == ["S40", "S20", "S0"]


def test_all_polls_are_shown_while_the_session_runs(airflow_on: Callable[[str], str], sqlite_database: str) -> None:
    airflow_on(sqlite_database)
    keep(session_of("R-1", at(0), status="RUNNING", terminal=False), poll(10_000, "PAUSED"))
    assert [each.status for each in its_timeline()[0]] == ["PAUSED"]


def test_of_reports_of_the_same_time_the_last_written_comes_first(
    airflow_on: Callable[[str], str], sqlite_database: str
) -> None:
    airflow_on(sqlite_database)
    keep(session_of("R-1", at(0), terminal=False), *(told("R-1", at(1), status=f"S{number}") for number in range(3)))
    assert [each.status for each in its_timeline()[0]] == ["S2", "S1", "S0"]


def test_a_timeline_that_is_too_long_keeps_the_newest_and_is_marked_as_cut(
    airflow_on: Callable[[str], str], sqlite_database: str
) -> None:
    airflow_on(sqlite_database)
    keep(
        session_of("R-1", at(0), terminal=False),
        *(told("R-1", at(number), status="RUNNING", notification_id=f"n{number}") for number in range(499)),
        poll(250.5, "PAUSED"),
    )
    found, cut = its_timeline()
    assert (len(found), cut) == (500, False)
    keep(poll(251.5, "RUNNING"))
    found, cut = its_timeline()
    assert (len(found), cut) == (500, True)
    assert (found[0].observed_at, found[-1].observed_at) == (at(498), at(1))


def test_each_query_uses_an_index(airflow_on: Callable[[str], str], sqlite_database: str) -> None:
    airflow_on(sqlite_database)
    keep(session_of("R-1", at(0)))
    listed = the_session()
    with explained() as plans:
        read(partial(timeline, listed=listed))
    assert len(plans) == 2
    assert [each for each in plans if not uses_an_index(each[1])] == []
    own, polls = [step for _, plan in plans for step in plan if step.startswith("SEARCH")]
    assert "ix_mediation_transition_session (conn_id=? AND meter_id=? AND session_id=?" in own
    # All the polls of a meter would be too many.
    assert "ix_mediation_transition_kind (conn_id=? AND kind=? AND created_at>? AND created_at<?" in polls
