"""Places and filters of the list: a search for a rare value ends early, and together the searches miss nothing."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from airflow_mediation_provider.journal import session_search as module
from airflow_mediation_provider.journal.session_list import Listing, list_sessions
from airflow_mediation_provider.journal.session_search import Filters, Keyset
from airflow_mediation_provider.journal.transaction import read
from tests.unit.journal.old_rows import NOW, keep, session_of
from tests.unit.journal.plans import explained, worked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MINUTE = timedelta(minutes=1)
VALUES = {
    "conn_id": (None, "zuora", "other"),
    "meter_id": (None, "1001", "1002"),
    "status": (None, "COMPLETED", "FAILED", "PAUSED"),
    "run_type": (None, "NORMAL", "DEBUG"),
    "since": (None, NOW + 10 * MINUTE),
    "until": (None, NOW + 30 * MINUTE),
}


class TestPlace:
    @pytest.mark.parametrize(
        "instant", [NOW, NOW + timedelta(microseconds=1), datetime(2399, 12, 31, 23, 59, tzinfo=UTC)]
    )
    def test_a_place_survives_its_address(self, instant: datetime) -> None:
        assert Keyset.parse(str(Keyset(instant, 4711))) == Keyset(instant, 4711)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "a-b",
            "1-2-3",
            "1.5-2",
            " 1-2",
            "1-2\n",
            "\u0661-2",
            "1_0-2",
            "9" * 18 + "-1",
            "1-" + "9" * 19,
        ],
    )
    def test_a_text_that_is_no_place_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not a place in the list"):
            Keyset.parse(text)


def listed(filters: Filters, limit: int = 50, **places: Keyset | None) -> Listing:
    return read(lambda session: list_sessions(session, filters, limit=limit, **places))


def names(pages: list[Listing]) -> list[str]:
    return [each.session_id for page in pages for each in page.sessions]


class TestScans:
    @pytest.fixture(autouse=True)
    def _short_looks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "SCANNED", 5)

    @pytest.fixture
    def sessions(self, airflow_database: str) -> list[dict[str, object]]:
        """Of all kinds, some with the same start; the newest first."""
        del airflow_database
        drawn = random.Random(1)
        rows = [
            {name: drawn.choice(values[1:]) for name, values in VALUES.items() if name not in ("since", "until")}
            for _ in range(60)
        ]
        for number, row in enumerate(rows):
            row["status"] = drawn.choice(("COMPLETED", "COMPLETED", "COMPLETED", "FAILED"))
            row |= {"session_id": f"R-{number:02}", "at": NOW + (number - number % 3) * MINUTE}
        keep(*(session_of(**row) for row in rows))
        return rows[::-1]

    def forth(self, filters: Filters, limit: int) -> Iterator[Listing]:
        page = listed(filters, limit)
        yield page
        while page.older:
            page = listed(filters, limit, before=page.older)
            yield page

    def back(self, filters: Filters, limit: int, page: Listing) -> Iterator[Listing]:
        while page.newer:
            page = listed(filters, limit, after=page.newer)
            yield page

    def fitting(self, filters: Filters, asked: dict[str, object], sessions: list[dict[str, object]]) -> list[object]:
        begin, end = filters.since or NOW - MINUTE, filters.until or NOW + 999 * MINUTE
        return [
            row["session_id"]
            for row in sessions
            if all(row[name] == value for name, value in asked.items()) and begin <= row["at"] < end
        ]

    def test_each_session_is_shown_once_forth_and_back_with_any_filters(
        self, sessions: list[dict[str, object]]
    ) -> None:
        cut = 0
        for values in random.Random(2).sample(list(itertools.product(*VALUES.values())), 60):
            given = {name: value for name, value in zip(VALUES, values, strict=True) if value is not None}
            asked = {name: value for name, value in given.items() if name not in ("since", "until")}
            statuses = (asked["status"],) if "status" in asked else ()
            filters = Filters(**{name: given[name] for name in given if name != "status"}, statuses=statuses)
            limit = 1 + len(asked)
            forth = list(self.forth(filters, limit))
            assert names(forth) == self.fitting(filters, asked, sessions), filters
            cut += sum(page.cut for page in forth)
            # The way back starts after the last page.
            back = [*reversed(list(self.back(filters, limit, forth[-1]))), forth[-1]]
            assert names(back) == self.fitting(filters, asked, sessions), filters
        assert cut > 20

    def test_a_cut_page_returns_where_it_stopped_and_the_next_one_continues_there(self, airflow_database: str) -> None:
        del airflow_database
        keep(*(session_of(f"R-{number}", NOW + number * MINUTE, run_type="DEBUG") for number in range(4)))
        keep(*(session_of(f"R-{number}", NOW + number * MINUTE) for number in range(4, 16)))
        completed_tests = Filters(statuses=("COMPLETED",), run_type="DEBUG")
        # There are only five of the rarer kind, so all of them are scanned.
        assert names([page := listed(completed_tests)]) == ["R-3", "R-2", "R-1", "R-0"]
        assert (page.newer, page.older, page.cut) == (None, None, False)
        keep(session_of("R-T", NOW - MINUTE, run_type="DEBUG", status="FAILED"))
        none = Filters(statuses=("FAILED",), run_type="NORMAL")
        assert listed(none) == Listing((), newer=None, older=None)
        failed = {"status": "FAILED", "run_type": "DEBUG"}
        keep(*(session_of(f"R-F{number}", NOW - number * MINUTE, **failed) for number in range(2, 9)))
        first = listed(none)
        assert (first.sessions, first.newer, first.cut) == ((), None, True)
        assert first.older == Keyset(NOW - 6 * MINUTE, 0)
        last = listed(none, before=first.older)
        assert (last.sessions, last.newer, last.older, last.cut) == ((), first.older, None, False)

    def test_a_full_page_is_not_cut(self, airflow_database: str) -> None:
        del airflow_database
        keep(*(session_of(f"R-{number}", NOW + number * MINUTE) for number in range(16)))
        page = listed(Filters(statuses=("COMPLETED",), run_type="NORMAL"), limit=3)
        assert (names([page]), page.cut, page.older) == (["R-15", "R-14", "R-13"], False, Keyset(NOW + 13 * MINUTE, 14))


def test_the_rarest_filter_leads_to_the_sessions(
    airflow_on: Callable[[str], str], sqlite_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite uses any index that fits, without statistics about how many rows it leads to."""
    airflow_on(sqlite_database)
    monkeypatch.setattr(module, "SCANNED", 2)
    for number in range(12):
        values = {"status": "FAILED" if number % 4 == 0 else "COMPLETED", "conn_id": f"c{number % 2}"}
        keep(session_of(f"R-{number}", NOW + number * MINUTE, meter_id=f"m{number}", **values))
    for filters, index in {
        Filters(conn_id="c0", statuses=("FAILED",)): "best_status",
        Filters(conn_id="c1", statuses=("COMPLETED",)): "conn_id",
        Filters(statuses=("COMPLETED",), meter_id="m1"): "meter_id",
        Filters(run_type="NORMAL", statuses=("FAILED",)): "best_status",
    }.items():
        with explained() as plans:
            assert listed(filters).sessions
        searched = [steps for statement, steps in plans if "run_type" in statement and "coalesce" in statement]
        assert [[step.split()[4] for step in steps] for steps in searched] == [
            [f"ix_mediation_session_{index}_begun_at"]
        ]


@pytest.mark.parametrize("back", [True, False])
def test_a_search_in_a_wide_span_costs_only_the_scanned_rows(
    airflow_on: Callable[[str], str], sqlite_database: str, monkeypatch: pytest.MonkeyPatch, *, back: bool
) -> None:
    airflow_on(sqlite_database)
    monkeypatch.setattr(module, "SCANNED", 20)
    keep(*(session_of(f"R-{number}", NOW + number * MINUTE) for number in range(1000)))
    place = {"before" if back else "after": Keyset(NOW + 500 * MINUTE, 0)}

    def cost(span: int) -> int:
        times = {"since": NOW + (500 - span) * MINUTE, "until": NOW + (500 + span) * MINUTE}
        with worked() as steps:
            page = listed(Filters(run_type="NORMAL", statuses=("FAILED",), **times), **place)
        assert page.sessions == ()
        return steps[0]

    assert cost(500) < 1.5 * cost(25)
