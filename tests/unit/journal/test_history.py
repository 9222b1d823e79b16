"""The cursor of the callout history in the journal: one reader at a time, moved by compare-and-set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
from airflow import settings
from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_mediation_provider.journal.history import take_turn
from airflow_mediation_provider.journal.prune import prune
from airflow_mediation_provider.journal.tables import HistoryRow
from airflow_mediation_provider.protocol.callouts.cursor import LEASE, HistoryCursor
from airflow_mediation_provider.protocol.maintenance import HistoryReply, HistoryRequest

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

pytestmark = pytest.mark.usefixtures("airflow_database")


def ask(at: datetime, seconds: float = 60.0, **report: Any) -> HistoryReply:
    return take_turn(HistoryRequest(seconds=seconds, **report), conn_id="zuora", now=at)


def passed(reply: HistoryReply, at: datetime) -> HistoryCursor:
    return replace(reply.cursor, read_to=at, read_at=at, newest="2026-03-31T12:00:00", low=0.0)


def row() -> HistoryRow:
    with Session(settings.get_engine()) as session:
        found = session.scalars(select(HistoryRow)).one()
        session.expunge_all()
        return found


def test_the_first_reader_begins_from_now_and_the_next_ones_where_it_ended() -> None:
    first = ask(NOON)
    assert (first.wait, first.revision, first.cursor) == (0.0, 0, HistoryCursor(read_to=NOON))

    cursor = passed(first, NOON + MINUTE)
    assert ask(NOON, revision=0, cursor=cursor).revision == 1

    second = ask(NOON + MINUTE)
    assert (second.wait, second.revision, second.cursor) == (0.0, 1, cursor)
    assert row().read_at == NOON + MINUTE


def test_of_two_intervals_the_shorter_one_reads_until_it_is_gone() -> None:
    for minute in range(10):
        at = NOON + minute * MINUTE
        short = ask(at)
        assert short.wait == 0.0
        ask(at, revision=short.revision, cursor=passed(short, at))
        assert ask(at + MINUTE / 2, 300.0).wait == 270.0
    assert row().seconds == 60.0

    assert ask(NOON + 14 * MINUTE, 300.0).wait == 0.0
    assert row().seconds == 300.0


def test_a_reader_that_is_a_little_early_has_its_turn() -> None:
    """A scheduler starts the runs of a Dag at its own pace."""
    first = ask(NOON, 300.0)
    ask(NOON, 300.0, revision=0, cursor=passed(first, NOON))
    assert ask(NOON + 4 * MINUTE, 300.0).wait == 60.0
    assert ask(NOON + 4.8 * MINUTE, 300.0).wait == 0.0


def test_while_one_reads_no_other_has_its_turn_unless_it_takes_too_long() -> None:
    assert ask(NOON, 5.0).wait == 0.0
    assert ask(NOON + timedelta(seconds=10), 5.0).wait == 50.0
    assert ask(NOON + LEASE, 5.0).wait == 0.0


def test_only_one_of_two_reads_moves_the_cursor() -> None:
    slow = ask(NOON)
    fast = ask(NOON + 2 * MINUTE)
    assert (slow.revision, fast.revision) == (0, 0)

    assert ask(NOON, revision=0, cursor=passed(fast, NOON + 2 * MINUTE)).revision == 1
    late = ask(NOON, revision=0, cursor=passed(slow, NOON + MINUTE))

    assert (late.revision, late.cursor.read_to) == (1, NOON + 2 * MINUTE)


def test_of_many_at_once_one_reads_and_one_moves_the_cursor() -> None:
    begin = Barrier(8)

    def claim(_: int) -> float:
        begin.wait()
        return ask(NOON).wait

    def move(number: int) -> datetime:
        begin.wait()
        cursor = HistoryCursor(read_to=NOON + number * MINUTE, read_at=NOON)
        return ask(NOON, revision=0, cursor=cursor).cursor.read_to

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(claim, range(8))).count(0.0) == 1
        moved = set(threads.map(move, range(8)))

    assert len(moved) == 1
    assert row().revision == 1


def test_a_failure_is_kept_until_the_next_read_and_moves_nothing() -> None:
    first = ask(NOON)
    ask(NOON, revision=first.revision, trouble="No permission.", lasting=True)
    failed = row()
    assert (failed.trouble, failed.lasting, failed.open, failed.read_at, failed.revision) == (
        "No permission.",
        True,
        False,
        None,
        0,
    )

    second = ask(NOON + MINUTE)
    ask(NOON + MINUTE, revision=0, cursor=passed(second, NOON + MINUTE))
    assert (row().trouble, row().lasting, row().revision) == (None, False, 1)


def test_a_failure_of_a_reader_that_was_overtaken_is_not_kept() -> None:
    slow, fast = ask(NOON), ask(NOON + 2 * MINUTE)
    ask(NOON, revision=fast.revision, cursor=passed(fast, NOON))
    ask(NOON, revision=slow.revision, trouble="No answer.")
    assert row().trouble is None


def test_a_reader_that_goes_on_keeps_its_turn() -> None:
    first = ask(NOON)
    part = replace(first.cursor, read_to=NOON + MINUTE)
    ask(NOON + 2 * MINUTE, revision=0, cursor=part, goes_on=True)
    assert ask(NOON + 2.5 * MINUTE, 5.0).wait == 30.0
    assert row().read_at is None


def test_after_a_long_pause_nothing_is_read_that_may_have_been_pruned() -> None:
    first = ask(NOON)
    ask(NOON, revision=0, cursor=passed(first, NOON))
    after = ask(NOON + timedelta(days=100))
    assert after.cursor.read_to == NOON + timedelta(days=87)
    assert after.cursor.low is None


def test_the_row_of_a_history_that_is_read_no_more_is_pruned() -> None:
    ask(NOON)
    list(prune(NOON - MINUTE))
    assert row().conn_id == "zuora"
    list(prune(NOON + MINUTE))
    with Session(settings.get_engine()) as session:
        assert session.scalars(select(HistoryRow)).all() == []
