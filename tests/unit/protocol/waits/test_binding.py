"""Binding: the first session since an instant, regardless of the order of the reports."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.status import RunType
from airflow_mediation_provider.protocol.waits.condition import SessionCondition
from airflow_mediation_provider.protocol.waits.tracker import Binding
from tests.unit.protocol.tenant import at, state

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState

SENSED = SessionCondition(meter_id="2470", since=at(0))


def binding(called_at: float | None = None) -> Binding:
    return Binding(SENSED, earliest=at(0), called_at=None if called_at is None else at(called_at))


def session(session_id: str, begun: float | None, observed: float = 500, **fields: object) -> SessionState:
    started_at = None if begun is None else at(begun)
    return state("RUNNING", "INITIALIZING", observed, session_id=session_id, started_at=started_at, **fields)


def bound(*sessions: SessionState, called_at: float | None = None) -> str | None:
    to = binding(called_at)
    for each in sessions:
        to.take([each])
    return to.session_id


def test_the_first_session_counts_in_any_order_of_arrival() -> None:
    before, first, second = session("R-0", -1), session("R-9", 0), session("R-2", 1)
    for order in itertools.permutations((before, first, second)):
        assert bound(*order) == "R-9"
    assert bound(before) is None


def test_the_first_session_of_either_run_type_counts_where_both_are_awaited() -> None:
    both = SessionCondition(meter_id="2470", run_types=(RunType.NORMAL, RunType.DEBUG), since=at(0))
    to = Binding(both, earliest=at(0))
    to.take([session("R-1", 9), session("R-2", 5, run_type=RunType.DEBUG), session("R-3", 3, run_type="CANARY")])
    assert to.session_id == "R-2"


def test_other_meters_and_other_run_types_do_not_count() -> None:
    assert bound(session("R-1", 1, meter_id="7"), session("R-2", 1, run_type=RunType.DEBUG)) is None


def test_a_session_without_a_start_starts_at_its_first_report() -> None:
    assert bound(session("R-1", 10), session("R-2", None, observed=5)) == "R-2"


def test_a_session_that_turns_out_not_to_count_is_replaced_by_the_next() -> None:
    # Its first callout had no start, and did not show that it is a test.
    unclear = session("R-1", None, observed=5)
    assert bound(unclear, session("R-2", 8), session("R-1", -100)) == "R-2"
    assert bound(unclear, session("R-2", 8), session("R-1", 5, run_type=RunType.DEBUG)) == "R-2"
    assert bound(unclear, session("R-1", -100)) is None


def test_a_start_reported_later_may_change_the_first_session() -> None:
    assert bound(session("R-1", None, observed=5), session("R-2", 8), session("R-1", 20)) == "R-2"


def test_after_a_lost_reply_the_first_report_must_follow_the_run_call() -> None:
    ours = session("R-2", 98, observed=101)
    earlier = session("R-1", 60, observed=61)
    assert bound(earlier, ours, called_at=100) == "R-2"
    assert bound(earlier, called_at=100) is None
    assert binding(100).earliest == at(100) - timedelta(minutes=5)


def test_the_first_report_may_be_five_seconds_before_the_call_by_another_machines_clock() -> None:
    assert bound(session("R-1", 98, observed=95), called_at=100) == "R-1"
    assert bound(session("R-1", 98, observed=94.9), called_at=100) is None


def test_no_more_than_the_first_eight_sessions_are_kept() -> None:
    to = binding()
    for number in reversed(range(20)):
        to.take([session(f"R-{number:02}", number)])
    assert [session_id for session_id, _ in to.to_list()] == [f"R-{number:02}" for number in range(8)]
    assert to.start == at(0)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-20, 60)), max_size=60), st.randoms())
def test_the_binding_depends_only_on_the_known_sessions(reports: list[tuple[int, int]], random: object) -> None:
    latest = dict(reports)
    to, other = binding(), binding()
    for number, begun in reports:
        to.take([session(f"R-{number:02}", begun)])
        kept = json.loads(json.dumps(to.to_list()))
        to = binding()
        to.load(kept)
    expected = min(((begun, f"R-{n:02}") for n, begun in latest.items() if begun >= 0), default=(0, None))[1]
    other.take([session(f"R-{n:02}", begun) for n, begun in latest.items()])
    assert other.session_id == expected
    if len(latest) <= 8:
        assert to.session_id == expected
