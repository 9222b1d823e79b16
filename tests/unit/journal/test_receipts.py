"""What API servers saw of callouts, stored for all of them, within limits, on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow import settings
from sqlalchemy import func, select, text

from airflow_mediation_provider.journal import receipts as module
from airflow_mediation_provider.journal.callout_list import (
    CalloutFilters,
    CalloutKind,
    count_answers,
    find_callout,
    list_callouts,
)
from airflow_mediation_provider.journal.prune import prune
from airflow_mediation_provider.journal.receipts import (
    Seen,
    acknowledge_refused,
    record_receipts,
    refusals,
    thin,
)
from airflow_mediation_provider.journal.session_search import Keyset
from airflow_mediation_provider.journal.tables import AnswersRow, ReceiptRow
from airflow_mediation_provider.journal.transaction import JournalMissing, read
from airflow_mediation_provider.journal.writer import record
from airflow_mediation_provider.protocol.callouts.receipt import NO_CONNECTION, Proof, Receipt, receipt
from airflow_mediation_provider.protocol.maintenance import Pruned
from tests.unit.journal.plans import explained
from tests.unit.journal.test_writer import change

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("airflow_database")

NOW = datetime(2026, 6, 1, 12, 30, tzinfo=UTC)


def saw(status: int = 401, at: datetime = NOW, conn_id: str = "zuora", **more: Any) -> Receipt:
    return Receipt(conn_id=conn_id, received_at=at, status=status, **more)


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


def seen(*each: Receipt) -> Seen:
    made = Seen()
    for one in each:
        made.add(one)
    return made


def keep(*each: Receipt) -> None:
    """As one process that writes once."""
    record_receipts(seen(*each))


def refused() -> dict[tuple[str, int], int]:
    return {(each.conn_id, each.status): each.count for each in read(lambda session: refusals(session, NOW))}


def stored(table: type[Any] = ReceiptRow) -> int:
    return read(lambda session: session.scalar(select(func.count()).select_from(table)) or 0)


def counted(conn_id: str = "zuora") -> list[tuple[int, int, int]]:
    """The answers of a connection: status, number, and how many have no receipt."""
    row = AnswersRow
    query = select(row.status, row.answers, row.without_receipt).filter_by(conn_id=conn_id)
    return read(lambda session: [tuple(each) for each in session.execute(query.order_by(row.hour, row.status))])


def listed(kind: CalloutKind | None = None, **more: Any) -> list[Any]:
    """The receipts of a connection, as the list has them."""
    filters = CalloutFilters(conn_ids=["zuora"], kind=kind, **more)
    found = read(lambda session: list_callouts(session, filters, limit=99))
    return [each.receipt for each in found.callouts]


# ---- refusals since the last accepted callout


def test_refusals_of_all_processes_are_added_up() -> None:
    keep(saw(401), saw(401), saw(405))
    keep(saw(401), saw(404, conn_id="other"))
    assert refused() == {("zuora", 401): 3, ("zuora", 405): 1, ("other", 404): 1}


def test_an_accepted_callout_of_any_process_ends_earlier_refusals_of_its_connection() -> None:
    keep(saw(401, ago(minutes=3)), saw(401, ago(hours=5)), saw(405, ago(hours=30)), saw(404, conn_id="other"))
    keep(saw(200, ago(minutes=2)))
    assert refused() == {("other", 404): 1}
    keep(saw(401, ago(minutes=1)))
    assert refused() == {("zuora", 401): 1, ("other", 404): 1}


def test_within_one_write_only_refusals_after_the_accepted_callout_count() -> None:
    keep(saw(401, ago(minutes=3)), saw(401, ago(minutes=3)), saw(200, ago(minutes=2)), saw(401, ago(minutes=1)))
    assert refused() == {("zuora", 401): 1}
    assert counted() == [(200, 1, 0), (401, 3, 0)]


def test_a_refusal_that_is_written_after_a_later_accepted_callout_does_not_count() -> None:
    keep(saw(200, ago(minutes=2)))
    keep(saw(401, ago(minutes=3)))
    assert refused() == {}


def test_refusals_count_for_a_week_and_those_of_no_connection_for_a_day() -> None:
    keep(saw(401, ago(days=6, hours=23)), saw(401, ago(days=7), "other"))
    keep(saw(404, ago(hours=23), NO_CONNECTION), saw(404, ago(hours=23), NO_CONNECTION), saw(405, ago(days=1), ""))
    assert refused() == {("zuora", 401): 1, (NO_CONNECTION, 404): 2}


def test_an_accepted_callout_to_a_connection_ends_nothing_of_no_connection() -> None:
    keep(saw(404, ago(hours=1), NO_CONNECTION))
    keep(saw(200))
    assert refused() == {(NO_CONNECTION, 404): 1}


def test_many_processes_at_once_lose_nothing() -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: keep(*[saw(401, ago(minutes=1))] * 3, saw(404, conn_id=NO_CONNECTION)), range(16)))
    assert refused() == {("zuora", 401): 48, (NO_CONNECTION, 404): 16}
    assert stored() == 48


# ---- receipts


def test_a_receipt_is_read_as_it_was_written() -> None:
    full = receipt(
        "zuora",
        NOW,
        401,
        extra={"callout_token": "hush"},
        method="PUT",
        headers=[("Content-Type", "text/plain"), ("Zuora-Notification-Id", "n-1"), ("X-Mediation-Token", "no")],
        query=[("meterId", "7")],
        body=b"nul \0 and half \xed\xa0\x80 and hush, and \xf0\x9f\x98\x80",
        milliseconds=12,
        proof=Proof.REFUSED,
        reason="the token in the header X-Mediation-Token is wrong",
    )
    keep(full)
    [found] = listed()
    detail = read(lambda session: find_callout(session, receipt_id=found.id))
    assert detail is not None
    assert detail.callout.receipt is not None
    assert detail.callout.receipt.receipt == full
    assert "hush" not in str(full)


def test_receipts_are_listed_by_pages_the_newest_first() -> None:
    keep(*(saw(401 if n % 2 else 200, ago(minutes=n // 3), body_size=n) for n in range(20)), saw(401, conn_id="other"))

    def pages(kind: CalloutKind | None = None) -> list[int | None]:
        found: list[int | None] = []
        filters = CalloutFilters(conn_ids=["zuora"], kind=kind)
        page = read(partial(list_callouts, filters=filters, limit=3))
        found += [each.receipt.receipt.body_size for each in page.callouts]
        while page.older:
            page = read(partial(list_callouts, filters=filters, limit=3, before=page.older))
            assert page.callouts
            found += [each.receipt.receipt.body_size for each in page.callouts]
        return found

    assert sorted(filter(None, pages()), reverse=False) == list(range(1, 20))
    assert [n // 3 for n in pages() if n is not None] == sorted(n // 3 for n in range(20))
    assert sorted(n for n in pages(CalloutKind.REFUSED) if n is not None) == list(range(1, 20, 2))
    assert sorted(n for n in pages(CalloutKind.ACCEPTED) if n is not None) == list(range(0, 20, 2))


def test_attempts_of_a_callout_are_numbered_and_lead_to_the_row_that_it_added() -> None:
    recorded = record([change(None, "RUNNING", "n-1"), change("RUNNING", "COMPLETED", "n-2")], conn_id="zuora")
    first, second = recorded.row_ids
    assert record([change(None, "RUNNING", "n-1")], conn_id="zuora").row_ids == ()
    keep(
        saw(503, ago(minutes=9), notification_id="n-1"),
        saw(200, ago(minutes=8), notification_id="n-1", transition_id=first),
        saw(200, ago(minutes=7), notification_id="n-2", transition_id=second),
        saw(200, ago(minutes=6), notification_id="n-1"),
        saw(200, ago(minutes=5)),
        saw(401, ago(minutes=4), conn_id="other", notification_id="n-1"),
    )
    filters = CalloutFilters(conn_ids=["zuora"])
    found = read(lambda session: list_callouts(session, filters, limit=9)).callouts
    assert [
        (str(each.kind), each.receipt.attempt, each.report and each.report.id) for each in found if each.receipt
    ] == [
        ("duplicate", 1, None),
        ("duplicate", 3, first),
        ("accepted", 1, second),
        ("accepted", 2, first),
        ("refused", 1, None),
    ]
    assert [each.receipt.transition_id for each in listed(CalloutKind.DUPLICATE)] == [None, None]


# ---- acknowledged ones


def test_an_acknowledged_refusal_does_not_count_and_a_new_one_does() -> None:
    keep(saw(401, ago(minutes=3)), saw(401, ago(minutes=2)), saw(404, ago(hours=2)), saw(401, conn_id="other"))
    newest, *_ = listed(CalloutKind.REFUSED)

    assert acknowledge_refused("zuora", "alice", NOW, receipt_id=newest.id) == 1
    assert refused() == {("zuora", 401): 1, ("zuora", 404): 1, ("other", 401): 1}
    assert acknowledge_refused("zuora", "bob", NOW, receipt_id=newest.id) == 0
    assert acknowledge_refused("other", "bob", NOW, receipt_id=newest.id) == 0
    assert acknowledge_refused("zuora", "bob", NOW) == 2
    assert refused() == {("other", 401): 1}

    keep(saw(401, NOW + timedelta(seconds=1)))
    assert refused() == {("zuora", 401): 1, ("other", 401): 1}
    assert [each.acknowledged and each.acknowledged.by for each in listed(CalloutKind.REFUSED)] == [
        None, "alice", "bob", "bob",
    ]  # fmt: skip
    assert len(listed(CalloutKind.REFUSED, open_only=True)) == 1
    assert [each.receipt.status for each in listed(CalloutKind.REFUSED, answer=404)] == [404]


def test_a_refusal_before_the_last_accepted_callout_takes_nothing_from_the_later_ones() -> None:
    keep(saw(401, ago(minutes=9)))
    keep(saw(200, ago(minutes=8)))
    keep(saw(401, ago(minutes=7)))
    _, earlier = listed(CalloutKind.REFUSED)
    assert acknowledge_refused("zuora", "alice", NOW, receipt_id=earlier.id) == 1
    assert refused() == {("zuora", 401): 1}


def test_all_that_have_no_receipt_are_acknowledged_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_AN_HOUR", 1)
    keep(*[saw(401, ago(minutes=1))] * 3, saw(404, ago(minutes=1), NO_CONNECTION))
    assert refused() == {("zuora", 401): 3, (NO_CONNECTION, 404): 1}
    counts = read(lambda session: count_answers(session, ago(days=1)))
    assert [(each.conn_id, each.accepted, each.refused, each.unlisted) for each in counts] == [
        (NO_CONNECTION, 0, {404: 1}, 1),
        ("zuora", 0, {401: 3}, 2),
    ]
    assert acknowledge_refused("zuora", "alice", NOW) == 3
    assert refused() == {(NO_CONNECTION, 404): 1}
    assert acknowledge_refused(NO_CONNECTION, "alice", NOW) == 1
    assert refused() == {}


# ---- limits


def test_an_hour_has_so_many_receipts_of_a_connection_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_AN_HOUR", 5)
    monkeypatch.setattr(module, "ACCEPTED_AN_HOUR", 7)
    for _ in range(4):
        keep(*(saw(status) for status in (401, 401, 405, 200, 200)), saw(401, conn_id="other"))
    assert counted() == [(200, 8, 1), (401, 8, 4), (405, 4, 3)]
    assert stored() == 5 + 7 + 4
    keep(saw(401, NOW + timedelta(hours=1)))
    assert stored() == 5 + 7 + 4 + 1


def test_a_process_keeps_so_many_receipts_until_it_writes() -> None:
    made = Seen(most=3)
    for n in range(10):
        made.add(saw(401, body_size=n))
        made.add(saw(404, conn_id=NO_CONNECTION))
    made.add(saw(200))
    record_receipts(made)
    assert counted() == [(200, 1, 0), (401, 10, 7)]
    assert counted(NO_CONNECTION) == [(404, 10, 0)]
    assert stored() == 4


def test_what_is_too_old_or_too_much_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REFUSED", 4)
    monkeypatch.setattr(module, "MOST_ACCEPTED", 6)
    monkeypatch.setattr(module, "_BATCH", 3)
    keep(saw(401, ago(days=30, minutes=1)), saw(401, ago(days=31, minutes=1), "gone"))
    keep(*(saw(status, ago(minutes=n), body_size=n) for n in range(10) for status in (200, 401)))
    keep(saw(401, conn_id="other"))
    assert stored() == 23

    thin(NOW)

    left = listed()
    assert [each.receipt.body_size for each in left if each.receipt.accepted] == [0, 1, 2, 3, 4, 5]
    assert [each.receipt.body_size for each in left if not each.receipt.accepted] == [0, 1, 2, 3]
    assert stored() == 11
    assert stored(AnswersRow) == 3
    assert thin(NOW) == 0

    monkeypatch.setattr(module, "MOST", 5)
    assert thin(NOW) == 6
    assert stored() == 5


def test_prune_deletes_receipts_of_its_connection_alone() -> None:
    keep(*(saw(401, ago(days=20), conn_id) for conn_id in ("zuora", "zuora", "other", NO_CONNECTION)), saw(200))
    before = ago(days=14)

    assert sum((each for each in prune(before, conn_id="zuora", dry_run=True)), Pruned()) == Pruned(others=3)
    assert sum((each for each in prune(before, conn_id="zuora")), Pruned()) == Pruned(others=3)
    assert (stored(), stored(AnswersRow)) == (2, 3)
    assert sum((each for each in prune(before)), Pruned()) == Pruned(others=3)
    assert (stored(), stored(AnswersRow)) == (1, 1)


def test_prune_continues_after_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_mediation_provider.journal.prune.BATCH", 2)
    keep(*(saw(401, ago(days=20, minutes=n)) for n in range(7)))
    assert sum((each for each in prune(ago(days=14))), Pruned()).others == 8
    assert stored() == 0


def test_missing_tables_are_named_with_the_command() -> None:
    with settings.NonScopedSession() as session:
        session.execute(text("DROP TABLE mediation_answers"))
        session.commit()
    with pytest.raises(JournalMissing, match="airflow db migrate"):
        keep(saw())


class TestPlans:
    """By SQLite's own explanation: each query finds its rows by an index, in order."""

    @pytest.fixture
    def airflow_database(self, sqlite_database: str, airflow_on: Callable[[str], str]) -> str:
        return airflow_on(sqlite_database)

    def test_no_query_scans_or_sorts(self) -> None:
        keep(saw(401, notification_id="n-1"), saw(200))
        with explained() as plans:
            for kind in (None, *CalloutKind):
                for open_only in (False, True):
                    filters = CalloutFilters(conn_ids=["zuora"], kind=kind, since=ago(days=9), open_only=open_only)
                    read(partial(list_callouts, filters=filters, limit=9, before=Keyset(NOW + timedelta(days=1), 9)))
            read(lambda session: find_callout(session, receipt_id=1))
            read(lambda session: count_answers(session, ago(days=1)))
            keep(saw(401), saw(200))
            acknowledge_refused("zuora", "alice", NOW)
        assert len(plans) > 8
        read_in_order = [step for _, plan in plans for step in plan if "ROW_NUMBER" not in step]
        assert [step for step in read_in_order if step.startswith("SCAN") and "mediation" in step] == []
        of_receipts = [
            plan for query, plan in plans if "ORDER BY mediation_receipt" in query and "row_number" not in query
        ]
        assert [plan for plan in of_receipts if any("B-TREE" in step for step in plan)] == []
