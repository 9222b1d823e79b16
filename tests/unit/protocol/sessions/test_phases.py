"""Phases: they show a session's walk, even where reports came late, twice, without an id or not at all."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.lifecycle import Phase, fold, phases
from airflow_mediation_provider.protocol.status import ANY_TERMINAL
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from tests.unit.protocol.tenant import at, second

if TYPE_CHECKING:
    from collections.abc import Sequence

Drawn = tuple[str, float, float | None]
OFTEN = settings(max_examples=3 * settings.default.max_examples // 2)
PATH = ("INITIALIZING", "RUNNING", "CONSUME_COMPLETED", "USAGE_PUSHING", "PUSH_COMPLETED", "COMPLETED")


def report(previous: str | None, status: str, seconds: float = 0, id_: str | None = "") -> SessionTransition:
    """A report; each one has its own id, unless another one, or none, is given."""
    return SessionTransition(
        meter_id="2470",
        session_id="R-1",
        previous_status=previous,
        status=status,
        observed_at=at(seconds),
        source=Source.CALLOUT,
        notification_id=f"{previous}-{status}-{seconds}" if id_ == "" else id_,
    )


def walked(*statuses: str, ids: bool = True) -> list[SessionTransition]:
    """The reports of a session that went through the statuses, one every ten seconds."""
    edges = zip((None, *statuses), statuses, strict=False)
    return [report(before, status, 10 * n, "" if ids else None) for n, (before, status) in enumerate(edges)]


def drawn(reports: Sequence[SessionTransition], *, begun: float = 0, ended: float | None = None) -> list[Drawn]:
    """The phases that a page draws: the present status is that of the fold."""
    present = fold(reports).status if reports else None
    found = phases(reports, begun_at=at(begun), ended_at=None if ended is None else at(ended), present=present)
    return [(each.status, second(each.begin), None if each.end is None else second(each.end)) for each in found]


def statuses(reports: Sequence[SessionTransition], *, ended: float | None = None) -> list[str]:
    return [status for status, _, _ in drawn(reports, ended=ended)]


def test_without_reports_there_are_no_phases() -> None:
    assert drawn([]) == []


def test_the_last_phase_of_a_running_session_is_open() -> None:
    assert drawn(walked("INITIALIZING", "RUNNING", "USAGE_PUSHING")) == [
        ("INITIALIZING", 0, 10),
        ("RUNNING", 10, 20),
        ("USAGE_PUSHING", 20, None),
    ]


def test_a_first_report_at_the_start_leaves_no_time_for_the_status_before_it() -> None:
    reports = [report("INITIALIZING", "RUNNING", 5), report("RUNNING", "PAUSED", 10)]
    assert drawn(reports, begun=5) == [("RUNNING", 5, 10), ("PAUSED", 10, None)]
    assert drawn(reports, begun=4) == [("INITIALIZING", 4, 5), ("RUNNING", 5, 10), ("PAUSED", 10, None)]


def test_reports_of_one_instant_are_drawn_in_the_order_of_the_walk() -> None:
    reports = [report(None, "INITIALIZING"), report("INITIALIZING", "RUNNING"), report("RUNNING", "COMPLETED")]
    for order in itertools.permutations(reports):
        assert statuses(order) == ["INITIALIZING", "RUNNING", "COMPLETED"]


def test_the_end_by_zuora_closes_the_previous_phase() -> None:
    """The callout of the end came five seconds after it; that of the previous status came even later."""
    reports = [*walked("INITIALIZING", "RUNNING"), report("RUNNING", "COMPLETED", 35)]
    assert drawn(reports, ended=30) == [("INITIALIZING", 0, 10), ("RUNNING", 10, 30), ("COMPLETED", 30, 30)]
    late = [*reports[:1], replace(reports[1], observed_at=at(40)), reports[2]]
    assert drawn(late, ended=30) == [("INITIALIZING", 0, 30), ("RUNNING", 30, 30), ("COMPLETED", 30, 30)]


def test_the_end_by_zuora_counts_where_zuoras_clock_is_ahead() -> None:
    reports = walked("INITIALIZING", "RUNNING", "COMPLETED")
    assert drawn(reports, begun=15, ended=90) == [
        ("INITIALIZING", 15, 15),
        ("RUNNING", 15, 90),
        ("COMPLETED", 90, 90),
    ]
    assert drawn(reports, begun=100, ended=90)[-1] == ("COMPLETED", 100, 100)


def test_the_first_report_names_the_status_that_the_session_began_with() -> None:
    assert drawn([report("INITIALIZING", "RUNNING", 10)]) == [("INITIALIZING", 0, 10), ("RUNNING", 10, None)]
    assert drawn([report("TESTING", "TESTING_PASSED", 9)], ended=5) == [("TESTING", 0, 5), ("TESTING_PASSED", 5, 5)]
    # A session begins with no other status: an earlier change was not received.
    assert phases([report("RUNNING", "COMPLETED", 10)], begun_at=at(0), ended_at=at(5)) == (
        Phase(None, at(0), at(5), "RUNNING"),
        Phase("COMPLETED", at(5), at(5)),
    )


@pytest.mark.parametrize("nothing", [None, "", "NULL", "NEVER_RUN", "RUNNING"])
def test_every_rendering_of_a_missing_previous_status_means_none(nothing: str | None) -> None:
    assert drawn([report(nothing, "RUNNING", 10)]) == [("RUNNING", 0, None)]
    assert drawn([report(nothing, "RUNNING", 10), report("RUNNING", "PAUSED", 20)]) == [
        ("RUNNING", 0, 20),
        ("PAUSED", 20, None),
    ]


def test_without_previous_statuses_phases_follow_the_order_of_arrival() -> None:
    path = ["RUNNING", "PAUSED", "RUNNING", "PAUSED", "RUNNING"]
    assert drawn([report(None, status, n) for n, status in enumerate(path)]) == [
        ("RUNNING", 0, 1),
        ("PAUSED", 1, 2),
        ("RUNNING", 2, 3),
        ("PAUSED", 3, 4),
        ("RUNNING", 4, None),
    ]


def test_a_late_report_is_placed_by_its_previous_status() -> None:
    reports = walked("INITIALIZING", "RUNNING", "CONSUME_COMPLETED", "COMPLETED")
    late = [replace(each, observed_at=at(1800)) if each.status == "RUNNING" else each for each in reports]
    assert drawn(late, ended=30) == [
        ("INITIALIZING", 0, 20),
        ("RUNNING", 20, 20),
        ("CONSUME_COMPLETED", 20, 30),
        ("COMPLETED", 30, 30),
    ]


def test_the_run_reply_and_the_first_callout_give_one_phase() -> None:
    """The reply has its own id and no previous status; it adds no phase after the end."""
    reply = report(None, "INITIALIZING", -1, "run:R-1")
    assert drawn([reply, *walked("INITIALIZING", "RUNNING", "COMPLETED")], begun=-1, ended=20) == [
        ("INITIALIZING", -1, 10),
        ("RUNNING", 10, 20),
        ("COMPLETED", 20, 20),
    ]
    running = report(None, "RUNNING", -1, "run:R-1")
    assert statuses([running, *walked("INITIALIZING", "RUNNING", "COMPLETED")], ended=20) == [
        "INITIALIZING",
        "RUNNING",
        "COMPLETED",
    ]


def test_two_notifications_of_each_change_are_one_change() -> None:
    reports = walked(*PATH)
    twice = [*reports, *(replace(each, notification_id=f"other-{n}") for n, each in enumerate(reports))]
    assert drawn(twice, ended=50) == drawn(reports, ended=50)


def test_a_loop_has_a_phase_for_each_time_it_was_walked() -> None:
    loop = ("INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "PAUSED", "RUNNING", "COMPLETED")
    reports = walked(*loop)
    assert statuses([*reports, *reports[:3]], ended=60) == [*loop]


def test_without_ids_a_loop_is_drawn_once() -> None:
    reports = walked("INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "PAUSED", "RUNNING", "COMPLETED", ids=False)
    assert statuses(reports, ended=60) == [
        "INITIALIZING",
        "RUNNING",
        "PAUSED",
        "RUNNING",
        "COMPLETED",
    ]


def test_a_loop_within_a_loop_is_walked_before_the_way_out_of_it() -> None:
    """The change that leads out was received first."""
    reports = walked("INITIALIZING", "RUNNING", "PAUSED", "STOPPING", "PAUSED", "RUNNING", "FAILED")
    late = [replace(each, observed_at=at(25)) if each.previous_status == "PAUSED" else each for each in reports[::-1]]
    late[1] = replace(late[1], observed_at=at(15))
    assert statuses(late, ended=60) == [
        "INITIALIZING",
        "RUNNING",
        "PAUSED",
        "STOPPING",
        "PAUSED",
        "RUNNING",
        "FAILED",
    ]


def test_the_newest_reports_of_a_long_loop_end_in_the_present_status() -> None:
    loop = walked("INITIALIZING", "RUNNING", *("PAUSED", "RUNNING") * 30)[-40:]
    found = drawn(loop)
    assert len(found) == 41
    assert found[0] == (None, 0, 220)
    assert found[-1] == ("RUNNING", 610, None)


@pytest.mark.parametrize("lost", range(1, 5))
def test_the_end_is_the_last_phase_where_a_report_was_lost(lost: int) -> None:
    """The changes before the gap were received after those behind it."""
    reports = walked(*PATH)
    del reports[lost]
    reports = [replace(each, observed_at=at(40 - second(each.observed_at))) for each in reports[:-1]] + reports[-1:]
    assert statuses(reports, ended=50) == [status for status in PATH if status != PATH[lost]]


def test_of_two_ends_both_are_drawn_and_the_one_that_counts_is_last() -> None:
    reports = [*walked("INITIALIZING", "RUNNING", "FAILED"), report("RUNNING", "COMPLETED", 40)]
    assert statuses(reports, ended=20) == ["INITIALIZING", "RUNNING", "COMPLETED", "FAILED"]


def test_a_re_opened_session_has_a_phase_for_its_first_end() -> None:
    reports = walked("INITIALIZING", "RUNNING", "FAILED", "RUNNING", "COMPLETED")
    assert drawn(reports, ended=40)[2:] == [("FAILED", 20, 30), ("RUNNING", 30, 40), ("COMPLETED", 40, 40)]


def test_a_phase_that_begins_in_the_future_has_no_length() -> None:
    """Zuora's clock may be ahead of ours."""
    assert Phase("RUNNING", at(10), None).lasts(at(4)) == timedelta(0)
    assert Phase("RUNNING", at(10), None).lasts(at(14)) == timedelta(seconds=4)
    assert Phase("RUNNING", at(10), at(12)).lasts(at(99)) == timedelta(seconds=2)


_STATUSES = ["INITIALIZING", "RUNNING", "PAUSED", "STOPPING", "USAGE_PUSHING", "COMPLETED", "FAILED", "MYSTERY"]
_reports = st.builds(
    report,
    st.sampled_from([None, "", "NULL", *_STATUSES]),
    st.sampled_from(_STATUSES),
    st.integers(-20, 60),
    st.sampled_from([None, *"abcdef"]),
)


def test_before_the_newest_reports_nothing_is_drawn() -> None:
    """Neither the first status nor the one before it fills the time of the reports that were not read."""
    newest = [report("RUNNING", "PAUSED", 30), report("PAUSED", "RUNNING", 40)]
    found = phases(newest, begun_at=at(0), ended_at=None, present="RUNNING", cut=True)
    assert found == (
        Phase(None, at(0), at(30)),
        Phase("PAUSED", at(30), at(40)),
        Phase("RUNNING", at(40), None),
    )
    found = phases(newest, begun_at=at(30), ended_at=None, present="RUNNING", cut=True)
    assert [each.status for each in found] == ["PAUSED", "RUNNING"]
    first = phases([report(None, "RUNNING", 30)], begun_at=at(0), ended_at=at(50), present="RUNNING", cut=True)
    assert [each.status for each in first] == [None, "RUNNING"]


@OFTEN
@given(st.data(), st.lists(_reports, max_size=12), st.integers(-30, 60), st.none() | st.integers(-30, 80))
def test_phases_are_contiguous_and_independent_of_order_and_copies(
    data: st.DataObject, reports: list[SessionTransition], begun: int, ended: int | None
) -> None:
    found = drawn(reports, begun=begun, ended=ended)
    copies = [replace(each, observed_at=each.observed_at + timedelta(seconds=5)) for each in reports[:3]]
    again = data.draw(st.permutations(reports))

    assert bool(found) is bool(reports)
    assert drawn(again, begun=begun, ended=ended) == found
    present = fold(reports).status if reports else None
    bounds = {"begun_at": at(begun), "ended_at": None if ended is None else at(ended), "present": present}
    drawn_phases = phases(reports, **bounds)  # type: ignore[arg-type]
    assert phases([*copies, *again, *reports], **bounds) == drawn_phases  # type: ignore[arg-type]
    for one, next_ in itertools.pairwise(drawn_phases):
        assert one.end == next_.begin
        assert one.begin <= next_.begin
        assert one.status != next_.status
    if drawn_phases:
        last = drawn_phases[-1]
        assert drawn_phases[0].begin == at(begun)
        assert last.status == present
        assert last.end == (None if ended is None else max(at(ended), at(begun)))
        assert all(each.lasts(at(-100)) >= timedelta(0) for each in drawn_phases)


@st.composite
def histories(draw: st.DrawFn) -> list[str]:
    """Walks as in Zuora, with loops."""
    middle = draw(st.lists(st.sampled_from(["RUNNING", "PAUSED", "STOPPING"]), max_size=9))
    end = draw(st.sampled_from([[], ["USAGE_PUSHING", "COMPLETED"], ["FAILED"]]))
    return [status for status, _ in itertools.groupby(["INITIALIZING", "RUNNING", *middle, *end])]


@OFTEN
@given(histories(), st.integers(0, 3), st.booleans())
def test_a_walk_received_in_time_is_drawn_as_it_was(path: list[str], copies: int, reply: bool) -> None:
    reports = walked(*path)
    more = [report(None, path[0], -3, "run:R-1")] if reply else []
    ended = second(reports[-1].observed_at) if path[-1] in ANY_TERMINAL else None

    found = drawn([*reports, *reports[:copies], *more], ended=ended)

    assert [status for status, _, _ in found] == path
    assert [begin for _, begin, _ in found] == [10 * n for n in range(len(path))]


@OFTEN
@given(st.data(), st.integers(1, len(PATH)))
def test_a_walk_without_loops_is_drawn_as_it_was_regardless_of_delays(data: st.DataObject, length: int) -> None:
    reports = walked(*PATH[:length])
    delays = data.draw(st.lists(st.integers(0, 200), min_size=length, max_size=length))
    late = [
        replace(each, observed_at=each.observed_at + timedelta(seconds=d))
        for each, d in zip(reports, delays, strict=True)
    ]

    assert statuses(data.draw(st.permutations(late))) == [*PATH[:length]]


def test_a_change_that_was_not_received_is_named_and_has_no_time() -> None:
    reports = [report(None, "RUNNING", 0), report("PUSH_COMPLETED", "COMPLETED", 30)]
    found = phases(reports, begun_at=at(0), ended_at=at(30), present="COMPLETED")
    assert found == (Phase("RUNNING", at(0), at(30), "PUSH_COMPLETED"), Phase("COMPLETED", at(30), at(30)))
    first = phases([report("RUNNING", "PAUSED", 10), *reports[1:]], begun_at=at(0), ended_at=None)
    assert [(each.status, each.later) for each in first] == [
        (None, "RUNNING"),
        ("PAUSED", "PUSH_COMPLETED"),
        ("COMPLETED", None),
    ]
