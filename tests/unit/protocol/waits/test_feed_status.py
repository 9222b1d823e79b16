"""The feed status by the feed's answers: worker and triggerer use the same times."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_mediation_provider.protocol.waits.feed_status import FeedMonitor, FeedStatus
from airflow_mediation_provider.protocol.wire import HistoryStatus

READ, LOST, OFF, UNFOUND = FeedStatus.READ, FeedStatus.LOST, FeedStatus.OFF, FeedStatus.UNFOUND


def feed(callouts: FeedStatus | None = None, silent_since: float | None = None) -> FeedMonitor:
    return FeedMonitor("zuora", cross_check=300, callouts=callouts, silent_since=silent_since)


@pytest.mark.parametrize("before", [None, *FeedStatus])
@pytest.mark.parametrize(("callouts", "after"), [(True, READ), (False, OFF)])
def test_an_answer_changes_the_status_at_once_and_is_returned_once(
    before: FeedStatus | None, callouts: bool, after: FeedStatus
):
    status = feed(before, silent_since=7)
    grounds = status.answered(callouts=callouts, address="http://api")
    assert (grounds and grounds.callouts) == (None if before is after else after)
    assert (status.callouts, status.silent_since, status.due) == (after, None, None)
    assert status.answered(callouts=callouts, address="http://api") is None


@pytest.mark.parametrize(
    ("before", "longest", "after"),
    [(None, 60, UNFOUND), (READ, 10, LOST), (OFF, None, OFF), (LOST, None, LOST), (UNFOUND, None, UNFOUND)],
)
def test_silence_changes_the_status_once_after_its_time(
    before: FeedStatus | None, longest: float | None, after: FeedStatus
):
    status = feed(before)
    for second in range(200):
        grounds = status.silent(1000 + second, "refused")
        assert (grounds and grounds.callouts) == (after if second == longest else None)
        assert status.callouts is (before if longest and second < longest else after)
    assert status.due is None


def test_an_answer_restarts_the_time_of_silence():
    status = feed(READ)
    status.silent(0, "refused")
    status.answered(callouts=True, address="http://api")
    assert status.silent(11, "refused") is None
    assert status.due == 21


def test_a_new_process_continues_the_time_of_silence():
    assert feed(READ, silent_since=0).silent(9, "refused") is None
    lost = feed(READ, silent_since=0).silent(10, "refused")
    assert lost is not None
    assert (lost.silent, lost.words) == (True, "callouts cannot be read just now, polling meanwhile (refused)")
    assert feed(None, silent_since=0).silent(59, "refused") is None
    assert feed(None, silent_since=0).silent(60, "refused") is not None


class TestTheHistory:
    """A connection without callouts, whose callout history is read, or was."""

    @pytest.mark.parametrize("before", [None, *FeedStatus])
    @pytest.mark.parametrize(("is_read", "after"), [(True, READ), (False, LOST)])
    def test_it_counts_as_callouts_do_while_it_is_read(
        self, before: FeedStatus | None, is_read: bool, after: FeedStatus
    ):
        status = feed(before)
        history = HistoryStatus(late=480, read=is_read)
        grounds = status.answered(callouts=False, address="http://api", history=history)
        assert status.callouts is after
        assert status.answered(callouts=False, address="http://api", history=history) is None
        if before is not after:
            assert grounds is not None
            assert grounds.late == timedelta(seconds=480 if is_read else 0)

    def test_its_text_names_how_late_it_is(self):
        grounds = feed().answered(callouts=False, address="http://api", history=HistoryStatus(late=480, read=True))
        assert grounds is not None
        assert grounds.words == (
            "the callout history of connection 'zuora' is read and has each change within 8m by http://api; "
            "polls cross-check it every 5m"
        )

    def test_another_interval_is_a_new_status(self):
        status = feed()
        for late in (480, 720):
            history = HistoryStatus(late=late, read=True)
            grounds = status.answered(callouts=False, address="http://api", history=history)
            assert grounds is not None
            assert grounds.late == timedelta(seconds=late)

    def test_callouts_come_first(self):
        status = feed()
        grounds = status.answered(callouts=True, address="http://api", history=HistoryStatus(late=480, read=False))
        assert grounds is not None
        assert (grounds.callouts, grounds.late) == (READ, timedelta())

    def test_a_history_that_is_not_read_is_no_outage_of_the_feed(self):
        status = feed(READ)
        status.answered(callouts=False, address="http://api", history=HistoryStatus(late=480, read=False))
        assert (status.callouts, status.silent_since, status.due) == (LOST, None, None)
