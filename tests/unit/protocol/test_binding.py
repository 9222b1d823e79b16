"""Binding: the first session since an instant, whatever is learned of which session when."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.binding import Binding
from airflow_mediation_provider.protocol.condition import SessionCondition
from airflow_mediation_provider.protocol.status import RunType
from tests.unit.protocol.tenant import at, state

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.lifecycle import SessionState

SENSED = SessionCondition(meter_id="2470", since=at(0))


def binding(called_at: float | None = None) -> Binding:
    return Binding(SENSED, earliest=at(0), called_at=None if called_at is None else at(called_at))


def session(session_id: str, begun: float | None, heard: float = 500, **fields: object) -> SessionState:
    started_at = None if begun is None else at(begun)
    return state("RUNNING", "INITIALIZING", heard, session_id=session_id, started_at=started_at, **fields)


def bound(*sessions: SessionState, called_at: float | None = None) -> str | None:
    to = binding(called_at)
    for each in sessions:
        to.take([each])
    return to.session_id


def test_the_first_since_whatever_the_order() -> None:
    before, first, second = session("R-0", -1), session("R-9", 0), session("R-2", 1)
    for order in itertools.permutations((before, first, second)):
        assert bound(*order) == "R-9"
    assert bound(before) is None


def test_other_meters_and_other_run_types_do_not_count() -> None:
    assert bound(session("R-1", 1, meter_id="7"), session("R-2", 1, run_type=RunType.DEBUG)) is None


def test_a_start_that_zuora_did_not_tell_is_when_it_was_first_heard_of() -> None:
    assert bound(session("R-1", 10), session("R-2", None, heard=5)) == "R-2"


def test_what_turns_out_not_to_count_gives_its_place_back() -> None:
    # Its first callout told neither its start nor that it is a test.
    unclear = session("R-1", None, heard=5)
    assert bound(unclear, session("R-2", 8), session("R-1", -100)) == "R-2"
    assert bound(unclear, session("R-2", 8), session("R-1", 5, run_type=RunType.DEBUG)) == "R-2"
    assert bound(unclear, session("R-1", -100)) is None


def test_a_start_that_is_told_later_may_make_another_one_the_first() -> None:
    assert bound(session("R-1", None, heard=5), session("R-2", 8), session("R-1", 20)) == "R-2"


def test_of_a_lost_reply_zuoras_clock_may_be_behind_but_nobody_heard_of_it_before() -> None:
    ours = session("R-2", 98, heard=101)
    earlier = session("R-1", 60, heard=61)
    assert bound(earlier, ours, called_at=100) == "R-2"
    assert bound(earlier, called_at=100) is None
    assert binding(100).earliest == at(100) - timedelta(minutes=5)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-20, 60)), max_size=60), st.randoms())
def test_it_depends_on_what_is_known_and_on_nothing_else(told: list[tuple[int, int]], random: object) -> None:
    latest = dict(told)
    to, other = binding(), binding()
    for number, begun in told:
        to.take([session(f"R-{number:02}", begun)])
        kept = json.loads(json.dumps(to.to_list()))
        to = binding()
        to.load(kept)
    expected = min(((begun, f"R-{n:02}") for n, begun in latest.items() if begun >= 0), default=(0, None))[1]
    other.take([session(f"R-{n:02}", begun) for n, begun in latest.items()])
    assert other.session_id == expected
    if len(latest) <= 8:
        assert to.session_id == expected
