"""The list of sessions: every session once, in either direction, while sessions arrive, and by an index."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_mediation_provider.journal import session_list as module
from airflow_mediation_provider.journal.session_list import (
    Counts,
    Listing,
    SessionKey,
    count_by_status,
    find_session,
    known_connections,
    list_sessions,
    with_phases,
)
from airflow_mediation_provider.journal.session_search import Filters, Keyset
from airflow_mediation_provider.journal.tables import CallsRow
from airflow_mediation_provider.journal.transaction import read
from tests.unit.journal.old_rows import NOW, keep, meter_of, session_of, told, wait_of
from tests.unit.journal.plans import explained, uses_an_index, worked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MINUTE = timedelta(minutes=1)


def listed(filters: Filters | None = None, *, limit: int = 50, **places: Keyset | None) -> Listing:
    return read(lambda session: list_sessions(session, filters or Filters(), limit=limit, **places))


def names(listing: Listing) -> list[str]:
    return [each.session_id for each in listing.sessions]


def counted(since: datetime, until: datetime, bars: int, **filters: Any) -> list[dict[str, int]]:
    found = read(lambda session: count_by_status(session, Filters(**filters), since=since, until=until, bars=bars))
    assert found.since == since
    return found.spans


def at(minutes: float) -> datetime:
    return NOW + minutes * MINUTE


def began(session_id: str, minutes: float, **values: Any) -> Any:
    return session_of(session_id, at(minutes), **values)


@pytest.mark.usefixtures("airflow_database")
class TestPaging:
    def test_each_accepted_place_is_accepted_by_databases(self) -> None:
        for text in ("0-0", "9" * 17 + "-" + "9" * 18):
            assert names(listed(before=Keyset.parse(text))) == names(listed(after=Keyset.parse(text))) == []

    def test_the_newest_come_first_by_start_and_not_by_first_report(self) -> None:
        keep(began("R-2", 2), began("R-1", 1), began("R-3", 3))
        assert names(listed()) == ["R-3", "R-2", "R-1"]

    def test_paging_forth_and_back_shows_each_session_once_also_those_with_the_same_start(self) -> None:
        keep(*(began(f"R-{number:02}", 0 if number < 8 else number) for number in range(11)))
        everything = names(listed())
        assert everything == [f"R-{number:02}" for number in reversed(range(11))]
        for limit in (1, 2, 3, 5, 10, 11):
            pages = list(self.forth(limit))
            assert [name for page in pages for name in names(page)] == everything
            assert [page.newer is not None for page in pages] == [False] + [True] * (len(pages) - 1)
            assert [page.older is not None for page in pages] == [True] * (len(pages) - 1) + [False]
            backwards = list(self.back(pages[-1], limit))
            assert [name for page in reversed(backwards) for name in names(page)] == everything
            assert [page.newer is not None for page in backwards] == [True] * (len(backwards) - 1) + [False]
            assert all(page.older for page in backwards[1:])

    def forth(self, limit: int) -> Iterator[Listing]:
        page = listed(limit=limit)
        yield page
        while page.older:
            page = listed(limit=limit, before=page.sessions[-1].place)
            yield page

    def back(self, page: Listing, limit: int) -> Iterator[Listing]:
        yield page
        while page.newer:
            page = listed(limit=limit, after=page.sessions[0].place)
            yield page

    def test_sessions_received_meanwhile_move_no_page(self) -> None:
        keep(*(began(f"R-{number}", number) for number in range(6)))
        first = listed(limit=2)
        keep(began("R-6", 6), began("R-7", 7))
        second = listed(limit=2, before=first.sessions[-1].place)
        assert (names(first), names(second)) == (["R-5", "R-4"], ["R-3", "R-2"])
        assert names(listed(limit=2, after=second.sessions[0].place)) == ["R-5", "R-4"]
        newest = listed(limit=2, after=first.sessions[0].place)
        assert (names(newest), newest.newer) == (["R-7", "R-6"], None)

    def test_filters_hold_on_each_page(self) -> None:
        keep(*(began(f"R-{number}", number, status=("COMPLETED", "FAILED")[number % 2]) for number in range(10)))
        failed = Filters(statuses=("FAILED",))
        first = listed(failed, limit=3)
        second = listed(failed, limit=3, before=first.sessions[-1].place)
        assert (names(first), names(second), second.older) == (["R-9", "R-7", "R-5"], ["R-3", "R-1"], None)
        assert names(listed(failed, limit=3, after=second.sessions[0].place)) == names(first)

    def test_an_empty_journal_has_one_empty_page(self) -> None:
        assert listed() == Listing((), newer=None, older=None)


@pytest.mark.usefixtures("airflow_database")
def test_each_filter_and_several_of_them() -> None:
    keep(
        began("R-1", 1, conn_id="other"),
        began("R-2", 2, run_type="DEBUG", status="TESTING_PASSED"),
        began("R-3", 3, meter_id="7"),
        began("R-4", 4, status="FAILED"),
    )
    for filters, found in [
        (Filters(), "R-4 R-3 R-2 R-1"),
        (Filters(conn_id="zuora"), "R-4 R-3 R-2"),
        (Filters(conn_id="other"), "R-1"),
        (Filters(conn_id="Zuora"), ""),
        (Filters(meter_id="7"), "R-3"),
        (Filters(statuses=("FAILED",)), "R-4"),
        (Filters(run_type="DEBUG"), "R-2"),
        (Filters(since=at(2)), "R-4 R-3 R-2"),
        (Filters(until=at(2)), "R-1"),
        (Filters(since=at(2), until=at(4)), "R-3 R-2"),
        (Filters(since=at(4), until=at(2)), ""),
        (Filters(conn_id="zuora", statuses=("COMPLETED",), since=at(3)), "R-3"),
    ]:
        assert names(listed(filters)) == found.split(), filters


@pytest.mark.usefixtures("airflow_database")
class TestOneSession:
    def test_it_is_found_by_all_three_parts_of_its_name(self) -> None:
        keep(began("R-1", 1), began("R-1", 2, conn_id="other"), began("R-1", 3, meter_id="7"))
        for key, begun in {
            SessionKey("zuora", "1001", "R-1"): 1,
            SessionKey("other", "1001", "R-1"): 2,
            SessionKey("zuora", "7", "R-1"): 3,
        }.items():
            found = read(partial(find_session, key=key))
            assert found is not None
            assert (found.key, found.begun_at) == (key, at(begun))
        assert read(partial(find_session, key=SessionKey("other", "7", "R-1"))) is None

    def test_its_end_is_zuoras_time_else_that_of_the_report_and_none_while_it_runs(self) -> None:
        keep(
            began("R-1", 0, last_observed_at=at(9), ended_at=at(8)),
            began("R-2", 0, last_observed_at=at(9)),
            began("R-3", 0, last_observed_at=at(9), terminal=False, status="RUNNING"),
        )
        assert {each.session_id: each.over_at for each in listed().sessions} == {
            "R-1": at(8),
            "R-2": at(9),
            "R-3": None,
        }

    def test_its_phases_are_those_of_its_own_changes_alone(self) -> None:
        keep(
            began("R-1", 0, last_observed_at=at(20), ended_at=at(20)),
            began("R-1", 0, conn_id="other", status="RUNNING", terminal=False),
            told("R-1", at(0), status="INITIALIZING", previous_status=None, notification_id="a"),
            told("R-1", at(5), status="RUNNING", previous_status="INITIALIZING", notification_id="b"),
            told("R-1", at(20), status="COMPLETED", previous_status="RUNNING", notification_id="c"),
            told("R-1", at(9), kind="periodic", status=None, notification_id="d"),
            told(None, at(10), kind="poll", status="PAUSED", notification_id="e"),
            told("R-1", at(3), status="RUNNING", conn_id="other", notification_id="a"),
            told("R-1", at(7), status="PAUSED", meter_id="7", previous_status="RUNNING", notification_id="f"),
        )
        of = {each.conn_id: [(p.status, p.begin, p.end) for p in each.phases] for each in listed().sessions}
        assert of["zuora"] == [
            ("INITIALIZING", at(0), at(5)),
            ("RUNNING", at(5), at(20)),
            ("COMPLETED", at(20), at(20)),
        ]
        assert of["other"] == [("RUNNING", at(0), None)]

    def test_of_an_endless_loop_the_newest_changes_are_drawn(self) -> None:
        loop = [("RUNNING", "PAUSED"), ("PAUSED", "RUNNING")] * 50
        keep(
            began("R-1", 0, status="RUNNING", terminal=False),
            *(
                told("R-1", at(number), previous_status=before, status=status, notification_id=f"n{number}")
                for number, (before, status) in enumerate(loop)
            ),
        )
        (found,) = listed().sessions
        assert len(found.phases) == 41
        assert (found.phases[0].status, found.phases[0].begin, found.phases[0].end) == (None, at(0), at(60))
        assert (found.phases[-1].status, found.phases[-1].begin) == ("RUNNING", at(99))
        # One that was received late belongs to the time of which nothing is drawn.
        keep(told("R-1", at(10), previous_status="INITIALIZING", status="RUNNING", notification_id="late"))
        (found,) = listed().sessions
        assert [(each.status, each.begin) for each in found.phases[:2]] == [(None, at(0)), ("RUNNING", at(61))]

    def test_without_a_change_it_has_no_phases(self) -> None:
        keep(began("R-1", 0))
        assert listed().sessions[0].phases == ()


@pytest.mark.usefixtures("airflow_database")
class TestCounts:
    def test_a_span_has_its_beginning_and_not_its_end(self) -> None:
        moment = timedelta(microseconds=1)
        keep(
            *(
                session_of(f"R-{number}", begun)
                for number, begun in enumerate(
                    [at(0) - moment, at(0), at(10) - moment, at(10), at(20), at(30) - moment, at(30)]
                )
            )
        )
        assert counted(at(0), at(30), 3) == [{"COMPLETED": 2}, {"COMPLETED": 1}, {"COMPLETED": 2}]

    def test_by_status_and_filter(self) -> None:
        keep(
            began("R-1", 1),
            began("R-2", 2, status="FAILED"),
            began("R-3", 2, status="FAILED", meter_id="7"),
            began("R-4", 19, status="MYSTERY"),
        )
        assert counted(at(0), at(20), 2) == [{"COMPLETED": 1, "FAILED": 2}, {"MYSTERY": 1}]
        assert counted(at(0), at(20), 2, meter_id="7") == [{"FAILED": 1}, {}]
        assert counted(at(0), at(20), 2, statuses=("FAILED",), conn_id="other") == [{}, {}]

    def test_times_of_the_filters_are_ignored(self) -> None:
        keep(began("R-1", 1))
        others = Filters(since=at(5), until=at(1))
        counts = read(lambda session: count_by_status(session, others, since=at(0), until=at(20), bars=2))
        assert counts == Counts(at(0), [{"COMPLETED": 1}, {}])

    def test_of_too_many_sessions_the_newest_are_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "COUNTED", 4)
        keep(*(began(f"R-{number}", number, conn_id=f"c{number % 3}") for number in range(12)))
        for filters, since, spans in [
            ({}, 7, [{"COMPLETED": 3}, {"COMPLETED": 2}]),
            ({"conn_id": "c1"}, 0, [{"COMPLETED": 2}, {"COMPLETED": 2}]),
            # The connection has no more than four: all of them are scanned, regardless of how many have the status.
            ({"conn_id": "c1", "statuses": ("COMPLETED",)}, 0, [{"COMPLETED": 2}, {"COMPLETED": 2}]),
            ({"statuses": ("COMPLETED",), "run_type": "NORMAL"}, 7, [{"COMPLETED": 3}, {"COMPLETED": 2}]),
        ]:
            counting = partial(count_by_status, filters=Filters(**filters), since=at(0), until=at(12), bars=2)
            counts = read(counting)
            assert counts == Counts(at(since), spans), filters

    def test_no_session_is_lost_between_spans_of_fractional_seconds(self) -> None:
        keep(*(session_of(f"R-{number}", at(0) + number * timedelta(seconds=1.7)) for number in range(30)))
        for bars in (2, 7, 24):
            counts = counted(at(0), at(1), bars)
            assert len(counts) == bars
            assert sum(count for each in counts for count in each.values()) == 30
        # Seven parts of a second are some microseconds short of it.
        keep(began("R-last", 1, begun_at=at(1) - timedelta(microseconds=1)))
        assert counted(at(1) - timedelta(seconds=1), at(1), 7)[-1] == {"COMPLETED": 1}


@pytest.mark.usefixtures("airflow_database")
def test_the_connections_are_those_with_a_row_in_any_table() -> None:
    assert read(known_connections) == []
    keep(
        began("R-1", 0),
        began("R-2", 0, conn_id="Zuora"),
        told(None, conn_id="unread", kind="unparsed"),
        told(None, conn_id="unread", kind="unparsed"),
        wait_of("w", conn_id="awaited"),
        CallsRow(conn_id="called", hour=NOW, calls=1, limited=0),
        CallsRow(conn_id="zuora", hour=NOW, calls=1, limited=0),
    )
    assert read(known_connections) == ["Zuora", "awaited", "called", "unread", "zuora"]


FILTERS = [
    Filters(),
    Filters(conn_id="zuora"),
    Filters(meter_id="1001"),
    Filters(conn_id="zuora", meter_id="1001"),
    Filters(statuses=("FAILED",)),
    Filters(run_type="DEBUG"),
    Filters(since=NOW),
    Filters(until=NOW),
    Filters(since=NOW, until=NOW + MINUTE),
    Filters(conn_id="zuora", meter_id="1001", statuses=("FAILED",), run_type="NORMAL", since=NOW),
]


def test_by_each_filter_the_list_is_read_off_an_index_in_its_order(
    airflow_on: Callable[[str], str], sqlite_database: str
) -> None:
    airflow_on(sqlite_database)
    with explained() as plans:
        for filters in FILTERS:
            listed(filters)
            listed(filters, before=Keyset(NOW, 1))
            listed(filters, after=Keyset(NOW, 1))
    # With several filters, each is queried for how rare it is: connection and meter as one, status, run type.
    assert len(plans) == 3 * len(FILTERS) + 3 * 3
    # One step: nothing is sorted.
    assert [each for each in plans if not uses_an_index(each[1]) or len(each[1]) > 1] == []


def test_a_meter_with_few_sessions_costs_the_same_beside_any_number_of_others(
    airflow_on: Callable[[str], str], sqlite_database: str
) -> None:
    airflow_on(sqlite_database)

    def cost(filters: Filters) -> int:
        with worked() as steps:
            assert [each.session_id for each in listed(filters).sessions] == ["R-few"]
        return steps[0]

    keep(began("R-few", 0, meter_id="2"))
    of_meter = Filters(conn_id="zuora", meter_id="2")
    cost(of_meter)
    before = cost(of_meter)
    keep(*(began(f"R-{number}", number) for number in range(1, 1000)))
    assert cost(of_meter) < 1.5 * before


def test_a_search_through_many_reads_no_phases_and_finds_the_same(
    airflow_on: Callable[[str], str], sqlite_database: str
) -> None:
    airflow_on(sqlite_database)
    keep(began("R-1", 0), told("R-1", at(0)), meter_of("1001", "Storage"))
    (full,) = listed().sessions
    (bare,) = read(partial(list_sessions, filters=Filters(), limit=50, bare=True)).sessions
    assert full.phases
    assert full.meter_name == "Storage"
    assert (bare.phases, bare.meter_name) == ((), None)
    assert read(partial(with_phases, listed=[bare])) == [full]


def test_the_queries_of_the_pages_use_indexes(airflow_on: Callable[[str], str], sqlite_database: str) -> None:
    airflow_on(sqlite_database)
    keep(began("R-1", 0), began("R-2", 0), told("R-1"), told("R-2"), wait_of("w", session_id="R-1"))
    with explained() as plans:
        listed()
        counted(at(0), at(1), 24)
        read(known_connections)
        read(partial(find_session, key=SessionKey("zuora", "1001", "R-1")))
    assert len(plans) == 9
    assert [each for each in plans if not uses_an_index(each[1])] == []
    of_changes = [plan for statement, plan in plans if "row_number()" in statement]
    assert len(of_changes) == 2
    searched = [step for plan in of_changes for step in plan if "mediation_transition" in step]
    # The index of kinds would serve this as well, and lead to all rows of the connection.
    assert len(searched) == 2
    assert {step.partition("USING INDEX ")[2].split()[0] for step in searched} == {"ix_mediation_transition_session"}


@pytest.mark.parametrize("filters", [{}, {"run_type": "NORMAL"}, {"run_type": "NORMAL", "statuses": ("COMPLETED",)}])
def test_a_chart_of_all_time_costs_only_the_counted_sessions(
    airflow_on: Callable[[str], str], sqlite_database: str, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any]
) -> None:
    airflow_on(sqlite_database)
    monkeypatch.setattr(module, "COUNTED", 20)
    keep(*(began(f"R-{number}", number) for number in range(1000)))

    def cost(since: datetime) -> int:
        with worked() as steps:
            counts = read(partial(count_by_status, filters=Filters(**filters), since=since, until=at(1000), bars=24))
        assert sum(each.get("COMPLETED", 0) for each in counts.spans) in (20, 21)
        return steps[0]

    assert cost(at(0)) < 1.5 * cost(at(980))
