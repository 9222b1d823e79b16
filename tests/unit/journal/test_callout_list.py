"""The list of callouts from the journal's rows: those that could not be parsed, and those of a session."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings

from airflow_mediation_provider.journal import receipts
from airflow_mediation_provider.journal.callout_list import (
    CalloutFilters,
    CalloutKind,
    CalloutListing,
    connections_with_callouts,
    find_callout,
    list_callouts,
)
from airflow_mediation_provider.journal.receipts import Seen, acknowledge_unparsed, record_receipts
from airflow_mediation_provider.journal.session_search import Keyset
from airflow_mediation_provider.journal.transaction import read, write
from airflow_mediation_provider.protocol.callouts.receipt import NO_CONNECTION, Receipt
from tests.unit.journal.old_rows import NEW, NOW, OLD, keep, session_of, told
from tests.unit.journal.plans import explained, uses_an_index

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("airflow_database")

UNPARSED: dict[str, Any] = {"kind": "unparsed", "status": None, "meter_id": None}


def listed(*conn_ids: str, before: Keyset | None = None, limit: int = 9, **which: Any) -> list[tuple[int, str | None]]:
    """The row of each callout, and why it could not be parsed."""
    filters = CalloutFilters(conn_ids=conn_ids or ["zuora"], **which)
    found = read(lambda session: list_callouts(session, filters, limit=limit, before=before)).callouts
    return [(each.report.id, each.report.error) for each in found if each.report]


def test_unparsed_callouts_are_those_of_the_named_connections_the_latest_first() -> None:
    keep(
        told(None, OLD, **UNPARSED, id=1, body={"text": "a", "error": "no session"}),
        told(None, NOW, **UNPARSED, id=2, body={"text": "b"}, conn_id="other"),
        told(None, NEW, **UNPARSED, id=3, body={"text": "c", "error": 'with "quotes"'}),
        told(None, NOW, **UNPARSED, id=4, conn_id="foreign"),
        told(None, NOW, **UNPARSED, id=5, source="run", body={"error": "of a task"}),
        told("R-1", NOW, id=6),
    )
    unparsed = partial(listed, kind=CalloutKind.UNREADABLE)
    assert unparsed("zuora", "other") == [(5, "of a task"), (2, None), (3, 'with "quotes"'), (1, "no session")]
    assert [row_id for row_id, _ in unparsed("zuora", since=NEW)] == [5, 3]
    assert [row_id for row_id, _ in unparsed("zuora", until=NEW)] == [1]
    assert [row_id for row_id, _ in unparsed("zuora", "other", limit=2, before=Keyset(NOW, 2))] == [3, 1]


@pytest.mark.parametrize("kind", [CalloutKind.UNREADABLE, CalloutKind.REFUSED])
def test_paging_forth_and_back_shows_each_callout_once_also_of_several_connections(kind: CalloutKind) -> None:
    conn_ids = ("zuora", "other")
    times = [NOW - timedelta(seconds=number // 3) for number in range(11)]
    keep(*(told(None, at, **UNPARSED, conn_id=conn_ids[number % 2]) for number, at in enumerate(times)))
    seen = Seen()
    for number, at in enumerate(times):
        seen.add(Receipt(conn_id=conn_ids[number % 2], received_at=at, status=401))
    record_receipts(seen)

    def page(**places: Keyset | None) -> CalloutListing:
        filters = CalloutFilters(conn_ids=conn_ids, kind=kind)
        return read(lambda session: list_callouts(session, filters, limit=3, **places))

    pages = [page()]
    while pages[-1].older:
        pages.append(page(before=pages[-1].older))
    everything = [each.place for part in pages for each in part.callouts]
    assert len(set(everything)) == 11
    assert everything == sorted(everything, reverse=True)
    assert [part.newer is not None for part in pages] == [False, True, True, True]
    back = [pages[-1]]
    while back[-1].newer:
        back.append(page(after=back[-1].newer))
    assert [part.callouts for part in back[::-1]] == [part.callouts for part in pages]
    assert all(part.older for part in back[1:])


def test_those_that_a_user_acknowledged_are_left_out_on_request() -> None:
    conn_ids = {1: "zuora", 2: "zuora", 3: "other"}
    keep(*(told(None, NOW, **UNPARSED, id=number, conn_id=conn_id) for number, conn_id in conn_ids.items()))
    keep(told("R-1", NOW, id=9))
    still_open = partial(listed, "zuora", "other", kind=CalloutKind.UNREADABLE, open_only=True)
    assert acknowledge_unparsed("zuora", "alice", NOW, row_id=1) == 1
    assert acknowledge_unparsed("zuora", "bob", NOW, row_id=1) == 0
    assert acknowledge_unparsed("zuora", "bob", NOW, row_id=9) == 0
    assert acknowledge_unparsed("other", "bob", NOW, row_id=2) == 0
    assert len(still_open()) == 2
    assert acknowledge_unparsed("zuora", "b" * 300, NOW) == 1
    assert len(still_open()) == 1
    detail = read(lambda session: find_callout(session, row_id=2))
    assert detail is not None
    assert detail.callout.acknowledged == (NOW, "b" * 250)


def test_many_are_acknowledged_in_short_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(*(told(None, NOW - timedelta(seconds=number // 2), **UNPARSED, id=number) for number in range(1, 8)))
    monkeypatch.setattr(receipts, "_BATCH", 2)
    done: list[Any] = []

    def watched(work: Callable[..., Any], **options: Any) -> Any:
        done.append(write(work, **options))
        return done[-1]

    monkeypatch.setattr(receipts, "write", watched)
    assert acknowledge_unparsed("zuora", "alice", NOW, until=NOW - timedelta(seconds=1)) == 6
    assert [count for count, _ in done] == [2, 2, 2, 0]
    assert listed(kind=CalloutKind.UNREADABLE, open_only=True) == [(1, None)]


def test_a_session_has_the_callouts_of_each_meter_or_of_one() -> None:
    keep(
        *(session_of("R-1", meter_id=meter) for meter in ("1001", "1002")),
        told("R-1", OLD, id=1),
        told("R-1", NEW, id=2, source="history"),
        told("R-1", NEW, id=3, meter_id="1002"),
        told("R-1", NEW, id=4, source="run"),
        told("R-2", NEW, id=5),
    )
    assert [row_id for row_id, _ in listed(session_id="R-1")] == [3, 2, 1]
    assert [row_id for row_id, _ in listed(session_id="R-1", meter_id="1001")] == [2, 1]
    assert listed("other", session_id="R-1") == []


def test_a_row_that_is_no_callout_is_not_found() -> None:
    keep(told("R-1", id=1, source="run"), told(None, id=2, kind="poll", source="poll"))
    for number in (1, 2, 3):
        assert read(partial(find_callout, row_id=number)) is None
        assert read(partial(find_callout, receipt_id=number)) is None


def test_a_connection_that_only_refused_callouts_is_listed() -> None:
    seen = Seen()
    for conn_id in ("new", NO_CONNECTION):
        seen.add(Receipt(conn_id=conn_id, received_at=NOW, status=401))
    record_receipts(seen)
    keep(told("R-1"))
    assert read(connections_with_callouts) == ["new", "zuora"]


class TestPlans:
    @pytest.fixture
    def airflow_database(self, sqlite_database: str, airflow_on: Callable[[str], str]) -> str:
        return airflow_on(sqlite_database)

    def test_each_query_uses_an_index(self) -> None:
        keep(told(None, NOW, **UNPARSED, id=1), session_of("R-1"), told("R-1", NOW, id=2))
        assert settings.engine is not None
        with explained() as plans:
            listed(kind=CalloutKind.UNREADABLE, since=OLD, open_only=True, before=Keyset(NOW, 7))
            listed(session_id="R-1", since=OLD)
            read(partial(find_callout, row_id=1))
            read(connections_with_callouts)
            acknowledge_unparsed("zuora", "alice", NOW)
        assert len(plans) > 8
        assert [each for each in plans if not uses_an_index(each[1])] == []
        unparsed = plans[0][1]
        assert any("ix_mediation_transition_kind (conn_id=? AND kind=? AND created_at>?" in step for step in unparsed)
        assert not any("B-TREE" in step for step in unparsed)
        of_session = [step for query, plan in plans if "session_id = ?" in query for step in plan]
        assert any(
            "ix_mediation_transition_session (conn_id=? AND meter_id=? AND session_id=?)" in s for s in of_session
        )

    def test_a_session_of_any_meter_is_found_by_the_index_of_ids(self) -> None:
        with explained() as plans:
            listed(session_id="R-1")
        (step,) = [plan[0] for statement, plan in plans if "FROM mediation_session" in statement]
        assert "INDEX ix_mediation_session_named (conn_id=? AND session_id=?)" in step
