"""The fold: the same set of reports gives the same state, it is the right one, and an undecided one is ambiguous."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.lifecycle import PRECEDENCE, SessionState, departures, fold
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from airflow_mediation_provider.protocol.wire import from_plain, to_plain
from tests.unit.protocol.tenant import at

PATH = ("INITIALIZING", "RUNNING", "CONSUME_COMPLETED", "USAGE_PUSHING", "PUSH_COMPLETED", "COMPLETED")


def report(previous: str | None, status: str, second: float = 0, **fields: object) -> SessionTransition:
    values: dict[str, object] = {
        "meter_id": "2470",
        "session_id": "R-1",
        "previous_status": previous,
        "status": status,
        "observed_at": at(second),
        "source": Source.CALLOUT,
        **fields,
    }
    return SessionTransition(**values)  # type: ignore[arg-type]


def walk(*statuses: str, ids: bool = True) -> list[SessionTransition]:
    """Return the reports of a session that went through the statuses, one a second."""
    edges = itertools.pairwise((None, *statuses))
    return [
        report(before, status, second, notification_id=f"n-{second}" if ids else None)
        for second, (before, status) in enumerate(edges)
    ]


def brief(state: SessionState) -> tuple[str, str | None, bool, bool]:
    return state.status, state.previous_status, state.conflict, state.ambiguous


@st.composite
def deliveries(draw: st.DrawFn, reports: list[SessionTransition]) -> list[SessionTransition]:
    """Deliver each report at least once, with copies, in any order; ``observed_at`` follows the order of delivery."""
    copies = draw(st.lists(st.sampled_from(reports), max_size=6))
    order = draw(st.permutations([*reports, *copies]))
    return [replace(one, observed_at=at(second)) for second, one in enumerate(order)]


_NON_TERMINAL = ["INITIALIZING", "RUNNING", "PAUSED", "STOPPING", "USAGE_PUSHING", "PUSH_COMPLETED"]
_FAILING = [*_NON_TERMINAL, "FAILED", "COMPLETED"]


@st.composite
def acyclic(draw: st.DrawFn) -> list[str]:
    middle = draw(st.permutations(_NON_TERMINAL))[: draw(st.integers(1, 6))]
    return [*middle, *draw(st.sampled_from([[], ["COMPLETED"], ["FAILED"], ["CANCELED"]]))]


@st.composite
def cyclic(draw: st.DrawFn) -> list[str]:
    """Walks that return to statuses, to terminal ones too: a session may be re-opened."""
    statuses = draw(st.lists(st.sampled_from(draw(st.sampled_from([_FAILING, _FAILING[:3]]))), min_size=1, max_size=12))
    return [status for status, _ in itertools.groupby(statuses)]


OFTEN = settings(max_examples=2 * settings.default.max_examples)


class TestProperties:
    @OFTEN
    @given(st.data(), acyclic(), st.booleans())
    def test_an_acyclic_history_ends_in_its_last_status(self, data: st.DataObject, path: list[str], ids: bool) -> None:
        state = fold(data.draw(deliveries(walk(*path, ids=ids))))
        before = path[-2] if len(path) > 1 else None
        assert brief(state) == (path[-1], before, False, False)
        assert state.terminal == (path[-1] in ANY_TERMINAL)

    @OFTEN
    @given(st.data(), cyclic())
    def test_a_cyclic_history_with_ids_ends_in_its_last_status(self, data: st.DataObject, path: list[str]) -> None:
        state = fold(data.draw(deliveries(walk(*path))))
        assert (state.status, state.conflict, state.ambiguous) == (path[-1], False, False)

    @OFTEN
    @given(st.data(), cyclic(), st.sets(st.integers(0, 12)))
    def test_a_cyclic_history_without_ids_is_correct_or_ambiguous(
        self, data: st.DataObject, path: list[str], without: set[int]
    ) -> None:
        reports = [
            replace(one, notification_id=None) if index in without else one for index, one in enumerate(walk(*path))
        ]
        state = fold(data.draw(deliveries(reports)))
        assert state.ambiguous or (state.status, state.conflict) == (path[-1], False)
        if state.ambiguous:
            assert not state.terminal

    @OFTEN
    @given(st.data(), cyclic(), cyclic())
    def test_the_order_of_the_reports_does_not_matter(
        self, data: st.DataObject, one: list[str], other: list[str]
    ) -> None:
        """Even where reports were lost, contradict each other, or were received in the same instant."""
        reports = [*walk(*one), *walk(*other, ids=False)]
        kept = data.draw(st.lists(st.sampled_from(reports), min_size=1, max_size=12))
        assert fold(data.draw(st.permutations(kept))) == fold(kept)

    @OFTEN
    @given(st.data(), acyclic())
    def test_lost_reports_never_create_an_end(self, data: st.DataObject, path: list[str]) -> None:
        reports = walk(*path)
        state = fold(data.draw(st.lists(st.sampled_from(reports), min_size=1)))
        assert state.status in path
        assert not state.terminal or state.status == path[-1]


class TestRules:
    def test_a_complete_session_ends_in_its_last_status(self) -> None:
        state = fold(walk(*PATH))
        assert brief(state) == ("COMPLETED", "PUSH_COMPLETED", False, False)

    def test_a_late_report_changes_nothing(self) -> None:
        reports = [*walk("INITIALIZING", "RUNNING", "COMPLETED"), report("PAUSED", "STOPPING", 99)]
        assert brief(fold(reports)) == ("COMPLETED", "RUNNING", False, False)

    def test_an_edge_from_the_terminal_status_re_opens_the_session(self) -> None:
        reports = walk("INITIALIZING", "RUNNING", "FAILED", "RUNNING")
        assert brief(fold(reports)) == ("RUNNING", "FAILED", False, False)
        assert fold(reports[:3]).terminal
        assert brief(fold([*reports, report("RUNNING", "COMPLETED", 9, notification_id="n-9")]))[0] == "COMPLETED"

    def test_a_re_opening_received_before_its_end_counts(self) -> None:
        reports = walk("RUNNING", "COMPLETED", "USAGE_PUSHING")
        assert fold(reversed(reports)).status == "USAGE_PUSHING"

    @pytest.mark.parametrize(
        ("ends", "status"),
        [
            (("COMPLETED", "FAILED"), "FAILED"),
            (("COMPLETED", "CANCELED"), "CANCELED"),
            (("CANCELED", "FAILED"), "FAILED"),
            (("TESTING_PASSED", "TESTING_FAILED"), "TESTING_FAILED"),
        ],
    )
    def test_of_two_ends_the_more_severe_wins_with_a_conflict(self, ends: tuple[str, str], status: str) -> None:
        for order in itertools.permutations(ends):
            state = fold([report("RUNNING", end, second) for second, end in enumerate(order)])
            assert (state.status, state.conflict, state.terminal) == (status, True, True)

    def test_an_end_left_for_another_end_is_no_conflict(self) -> None:
        assert brief(fold(walk("RUNNING", "FAILED", "COMPLETED"))) == ("COMPLETED", "FAILED", False, False)

    def test_several_notifications_of_one_change_count_once(self) -> None:
        """A second notification definition, filtered to FAILED, reports the same change with its own id."""
        reports = [*walk("RUNNING", "FAILED"), report("RUNNING", "FAILED", 5, notification_id="twin")]
        assert brief(fold(reports)) == ("FAILED", "RUNNING", False, False)

    def test_a_loop_reported_unevenly_is_ambiguous(self) -> None:
        reports = [*walk("RUNNING", "PAUSED", "RUNNING"), report("RUNNING", "PAUSED", 7, notification_id="twin")]
        reports.append(report("RUNNING", "PAUSED", 8, notification_id="triplet"))
        assert brief(fold(reports)) == ("PAUSED", "RUNNING", False, True)

    def test_a_loop_without_its_entry_is_ambiguous(self) -> None:
        state = fold(walk("RUNNING", "PAUSED", "RUNNING")[1:])
        assert (state.status, state.ambiguous) == ("RUNNING", True)

    def test_a_loop_that_was_entered_at_two_statuses_is_ambiguous(self) -> None:
        reports = [*walk("RUNNING", "PAUSED", "RUNNING"), report("STOPPING", "PAUSED", 9, notification_id="x")]
        assert fold(reports).ambiguous

    def test_an_end_after_a_loop_is_not_ambiguous(self) -> None:
        assert fold(walk("RUNNING", "PAUSED", "RUNNING", "COMPLETED", ids=False)).terminal

    def test_without_previous_statuses_only_an_end_is_unambiguous(self) -> None:
        lives = [report(None, "INITIALIZING", 1), report(None, "RUNNING", 2)]
        assert brief(fold(lives)) == ("RUNNING", None, False, True)
        assert brief(fold([*lives, report(None, "COMPLETED", 3)])) == ("COMPLETED", None, False, False)

    @pytest.mark.parametrize("nothing", [None, "", "NULL", "NEVER_RUN"])
    def test_the_run_reply_and_the_first_callout_are_the_same_change(self, nothing: str | None) -> None:
        reply = report(None, "INITIALIZING", 0, source=Source.RUN)
        callout = report(nothing, "INITIALIZING", 5, notification_id="n-1")
        assert brief(fold([callout, reply])) == ("INITIALIZING", None, False, False)
        assert fold([callout, reply, report("INITIALIZING", "RUNNING", 6)]).status == "RUNNING"

    def test_a_change_to_itself_is_a_report_of_the_status(self) -> None:
        assert brief(fold([report("RUNNING", "RUNNING")])) == ("RUNNING", None, False, False)
        assert not fold([*walk("INITIALIZING", "RUNNING"), report("RUNNING", "RUNNING", 9)]).ambiguous

    def test_an_unknown_status_is_kept(self) -> None:
        assert brief(fold(walk("RUNNING", "HIBERNATING"))) == ("HIBERNATING", "RUNNING", False, False)


class TestState:
    def test_the_state_has_the_times_and_sources_of_its_reports(self) -> None:
        reports = [
            report(None, "INITIALIZING", 7, started_at=at(3), source=Source.RUN),
            report("INITIALIZING", "RUNNING", 50, started_at=at(2)),
            report("RUNNING", "COMPLETED", 30, ended_at=at(28), source=Source.HISTORY, notification_id="n"),
            report("RUNNING", "COMPLETED", 90, ended_at=at(29), notification_id="n"),
        ]
        state = fold(reports)
        assert (state.started_at, state.begun_at, state.ended_at) == (at(2), at(2), at(29))
        assert (state.first_observed_at, state.last_observed_at) == (at(7), at(90))
        assert (state.observed_at, state.source) == (at(30), Source.HISTORY)
        assert (state.session_id, state.meter_id, state.run_type) == ("R-1", "2470", RunType.NORMAL)

    def test_without_a_start_the_session_begins_at_its_first_report(self) -> None:
        assert fold([report(None, "RUNNING", 5)]).begun_at == at(5)

    def test_no_session_starts_after_its_first_report(self) -> None:
        # The clocks may differ; two hours are a time that was read in another zone than it was written in.
        assert fold([report(None, "RUNNING", 5, started_at=at(5 + 300))]).begun_at == at(5 + 300)
        assert fold([report(None, "RUNNING", 5, started_at=at(5 + 301))]).begun_at == at(5)
        assert fold([report(None, "RUNNING", 5, started_at=at(5 + 7200))]).begun_at == at(5)

    def test_a_report_with_a_previous_status_is_preferred(self) -> None:
        reports = [report("INITIALIZING", "RUNNING", 1), report(None, "RUNNING", 5, source=Source.HISTORY)]
        assert (fold(reports).previous_status, fold(reports).source) == ("INITIALIZING", Source.CALLOUT)

    def test_a_session_that_goes_on_has_no_end(self) -> None:
        reopened = [report("RUNNING", "FAILED", 1, ended_at=at(1)), report("FAILED", "INITIALIZING", 2)]
        assert fold(reopened).ended_at is None

    def test_a_debug_session_is_known_by_its_statuses(self) -> None:
        assert fold([report(None, "TESTING")]).run_type is RunType.DEBUG
        assert fold([report(None, "INITIALIZING", run_type=RunType.DEBUG)]).run_type is RunType.DEBUG

    @pytest.mark.parametrize(
        ("types", "run_type"),
        [
            (["NORMAL", "CANARY"], "CANARY"),
            (["CANARY", "BLUE"], "BLUE"),
            (["CANARY", "DEBUG", "NORMAL"], "DEBUG"),
            (["CANARY", "run NORMAL"], "NORMAL"),
            (["CANARY", "run NORMAL", "DEBUG"], "DEBUG"),
            (["NORMAL", "run DEBUG"], "DEBUG"),
        ],
    )
    def test_an_unknown_run_type_outranks_a_normal_one_that_may_be_a_missing_field(
        self, types: list[str], run_type: str
    ) -> None:
        for order in itertools.permutations(types):
            reports = [
                report(
                    None, "RUNNING", second, run_type=each.removeprefix("run "),
                    source=Source.RUN if each.startswith("run ") else Source.CALLOUT,
                )
                for second, each in enumerate(order)
            ]  # fmt: skip
            state = fold(reports)
            assert (state.run_type, state.transition.run_type) == (run_type, run_type)
            assert from_plain(SessionState, to_plain(state), "it") == state
            assert state.starts_dags is (run_type in ("NORMAL", "DEBUG"))

    @pytest.mark.parametrize(
        "reports",
        [
            [],
            [report(None, "RUNNING"), report(None, "RUNNING", session_id="R-2")],
            [report(None, "RUNNING"), report(None, "RUNNING", meter_id="7")],
            [report(None, "RUNNING", session_id=None)],
        ],
    )
    def test_reports_of_several_sessions_are_refused(self, reports: list[SessionTransition]) -> None:
        with pytest.raises(ValueError, match="session"):
            fold(reports)


class TestArrivals:
    """The number of departures from a status gives the index of the present arrival at it."""

    @OFTEN
    @given(st.data(), cyclic())
    def test_departures_allow_one_announcement_for_each_arrival(self, data: st.DataObject, path: list[str]) -> None:
        reports = walk(*path)
        arrived = Counter(path)
        announced: Counter[str] = Counter()
        known: Counter[str] = Counter()
        received = []
        for one in data.draw(deliveries(reports)):
            received.append(one)
            state = fold(received)
            arrival = departures(received)[state.status] + 1
            if not state.ambiguous and known[state.status] < arrival:
                known[state.status] = arrival
                announced[state.status] += 1
        assert known[path[-1]] == arrived[path[-1]]
        assert announced <= arrived

    def test_without_ids_copies_count_once(self) -> None:
        reports = [*walk("RUNNING", "COMPLETED", "RUNNING", ids=False)] * 3
        assert departures(reports) == {"RUNNING": 1, "COMPLETED": 1}

    def test_a_status_that_was_never_left_was_reached_once(self) -> None:
        reports = [report("RUNNING", "COMPLETED", notification_id=str(number)) for number in range(3)]
        assert departures(reports)["COMPLETED"] == 0


MINUTES = 60
"""Between two changes, in seconds where the times matter: longer than clocks may differ."""


class Announcing:
    """The journal's counting: a status is announced once for each arrival at it."""

    def __init__(self) -> None:
        self.received: list[SessionTransition] = []
        self.announced: Counter[str] = Counter()
        self._known: Counter[str] = Counter()

    def receive(self, one: SessionTransition) -> SessionState:
        self.received.append(one)
        state = fold(self.received)
        arrival = departures(self.received)[state.status] + 1
        if state.starts_dags and self._known[state.status] < arrival:
            self._known[state.status] = arrival
            self.announced[state.status] += 1
        return state


def timed(*statuses: str, apart: float = 10 * MINUTES) -> list[SessionTransition]:
    """The reports of a walk as Zuora sends them: ends have their times, and reports come right after their changes."""
    return [
        replace(one, observed_at=at(n * apart + 1), ended_at=at(n * apart) if one.status in ANY_TERMINAL else None)
        for n, one in enumerate(walk(*statuses))
    ]


def again(one: SessionTransition, second: float, id_: str) -> SessionTransition:
    """The same request, sent again later with another notification id."""
    return replace(one, observed_at=at(second), notification_id=id_)


REOPENED = ("RUNNING", "COMPLETED", "RUNNING", "COMPLETED")


@st.composite
def reopened(draw: st.DrawFn) -> list[str]:
    """Walks that leave their ends again, several times."""
    ends = draw(st.lists(st.sampled_from(["COMPLETED", "FAILED"]), min_size=1, max_size=4))
    return [status for end in ends for status in ("RUNNING", end)]


class TestInventedIds:
    """A client that has recorded a callout can send it again with an id that was never used."""

    @pytest.mark.parametrize("order", [(2, 3), (3, 2)])
    def test_a_recorded_loop_starts_nothing_more(self, order: tuple[int, int]) -> None:
        """Ten rounds: no further end, and the start is announced once more at most, as a resend of it would be."""
        journal = Announcing()
        genuine = timed(*REOPENED)
        for one in genuine:
            journal.receive(one)
        assert journal.announced == {"RUNNING": 2, "COMPLETED": 2}
        for number in range(20):
            journal.receive(again(genuine[order[number % 2]], 3600 + number, f"invented-{number}"))
        assert journal.announced["COMPLETED"] == 2
        assert journal.announced["RUNNING"] <= 3

    def test_it_hides_no_later_end(self) -> None:
        journal = Announcing()
        *genuine, back, end = timed(*REOPENED, "RUNNING", "COMPLETED")
        for one in genuine:
            journal.receive(one)
        for number in range(6):
            journal.receive(again(genuine[2 + number % 2], 1900 + number, f"invented-{number}"))
        journal.receive(back)
        state = journal.receive(end)
        assert (state.status, state.ambiguous, journal.announced["COMPLETED"]) == ("COMPLETED", False, 3)

    def test_a_recorded_end_by_itself_changes_nothing(self) -> None:
        *genuine, end = timed(*REOPENED)
        reports = [*genuine, end, *(again(end, 3600 + number, f"invented-{number}") for number in range(10))]
        assert fold(reports) == replace(fold([*genuine, end]), last_observed_at=at(3609))

    @OFTEN
    @given(st.data(), reopened())
    def test_each_end_counts_once_among_any_resends(self, data: st.DataObject, path: list[str]) -> None:
        """Between the genuine callouts, any that was sent before comes again with another id."""
        journal = Announcing()
        genuine = timed(*path)
        for number, one in enumerate(genuine, 1):
            state = journal.receive(one)
            if one.ended_at is not None:
                assert (state.status, state.ambiguous) == (one.status, False)
            for copy, old in enumerate(data.draw(st.lists(st.sampled_from(genuine[:number]), max_size=6))):
                journal.receive(again(old, (number - 1) * 10 * MINUTES + 2 + copy, f"invented-{number}-{copy}"))
        ends = Counter(one.status for one in genuine if one.ended_at is not None)
        assert {status: journal.announced[status] for status in ends} == ends

    @OFTEN
    @given(st.data(), reopened(), st.sampled_from([1.0, 10.0 * MINUTES]))
    def test_late_doubled_and_reordered_callouts_count_each_end_once(
        self, data: st.DataObject, path: list[str], apart: float
    ) -> None:
        """Each callout is delivered once or more, after its change; in the end all ends of the last status count."""
        genuine = timed(*path, apart=apart)
        late = st.floats(0, 6 * apart)
        delivered = [replace(one, observed_at=one.observed_at + timedelta(seconds=data.draw(late))) for one in genuine]
        copies = data.draw(st.lists(st.sampled_from(delivered), max_size=4))
        delivered += [replace(one, observed_at=one.observed_at + timedelta(seconds=data.draw(late))) for one in copies]
        journal = Announcing()
        for one in sorted(delivered, key=lambda each: each.observed_at):
            state = journal.receive(one)
        assert (state.status, state.ambiguous) == (path[-1], False)
        assert journal.announced <= Counter(path)
        assert departures(journal.received)[path[-1]] + 1 == path.count(path[-1])

    @OFTEN
    @given(st.data(), reopened())
    def test_lost_callouts_never_make_an_end_count_twice(self, data: st.DataObject, path: list[str]) -> None:
        """Not with resends of what was not lost either."""
        kept = data.draw(
            st.lists(st.sampled_from(timed(*path)), min_size=1, unique_by=lambda each: each.notification_id)
        )
        copies = data.draw(st.lists(st.sampled_from(kept), max_size=8))
        late = [again(one, 24 * 3600 + number, f"invented-{number}") for number, one in enumerate(copies)]
        journal = Announcing()
        for one in [*data.draw(st.permutations(kept)), *late]:
            journal.receive(one)
        ends = Counter(one.status for one in kept if one.ended_at is not None)
        assert all(journal.announced[status] <= ends[status] for status in ANY_TERMINAL)

    def test_the_middle_that_is_reported_late_counts_the_second_end_once(self) -> None:
        first, end, back, second = timed(*REOPENED)
        journal = Announcing()
        for one in (first, end, second, replace(back, observed_at=at(3600)), again(back, 3700, "invented")):
            journal.receive(one)
        assert journal.announced["COMPLETED"] == 2

    def test_without_times_of_the_ends_the_ids_count(self) -> None:
        reports = walk(*REOPENED)
        assert departures(reports)["COMPLETED"] == 1
        copies = [again(one, 3600, "again") for one in reports[2:]]
        assert departures([*reports, *copies])["COMPLETED"] == 2

    def test_times_of_another_zone_decide_nothing(self) -> None:
        """They are later than their own reports, so no report is taken for a copy because of them."""
        ahead = [
            replace(one, ended_at=one.ended_at and at(0) + timedelta(hours=8)) for one in timed("RUNNING", "FAILED")
        ]
        back = report("FAILED", "RUNNING", 1800, notification_id="n-9")
        assert fold([*ahead, back]).status == "RUNNING"


@given(st.data(), cyclic())
def test_a_state_survives_the_round_trip(data: st.DataObject, path: list[str]) -> None:
    state = fold(data.draw(deliveries(walk(*path))))
    assert from_plain(SessionState, {**to_plain(state), "later": 1}, "it") == state


def test_every_terminal_status_has_a_severity() -> None:
    assert set(PRECEDENCE) == set(ANY_TERMINAL)
