"""SessionCondition refuses impossible arguments, and ``judge`` decides by exact reports."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.lifecycle import fold
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, DEBUG_ONLY, RunType, SessionStatus
from airflow_mediation_provider.protocol.waits.condition import (
    Judgement,
    Outcome,
    SessionCondition,
    judge,
    validate_statuses,
)
from tests.unit.protocol.tenant import at, state, transition

BOTH = (RunType.NORMAL, RunType.DEBUG)


class TestDefaults:
    def test_a_normal_condition_waits_for_completed(self) -> None:
        asked = SessionCondition(meter_id="2470")
        assert (asked.version, asked.statuses, asked.fail_on) == (
            "0.0.1",
            ("COMPLETED",),
            ("CANCELED", "FAILED", "TESTING_FAILED", "TESTING_PASSED"),
        )

    def test_a_debug_condition_waits_for_testing_passed(self) -> None:
        asked = SessionCondition(meter_id="2470", run_types="debug")  # type: ignore[arg-type]
        assert asked.run_types == (RunType.DEBUG,)
        assert (asked.statuses, asked.fail_on) == (
            ("TESTING_PASSED",),
            ("CANCELED", "COMPLETED", "FAILED", "TESTING_FAILED"),
        )

    def test_a_condition_on_both_run_types_waits_for_the_success_of_each(self) -> None:
        asked = SessionCondition(meter_id="2470", run_types=["debug", "NORMAL", "normal"])  # type: ignore[arg-type]
        assert asked == SessionCondition(meter_id="2470", run_types=BOTH)
        assert (asked.statuses, asked.fail_on) == (
            ("COMPLETED", "TESTING_PASSED"),
            ("CANCELED", "FAILED", "TESTING_FAILED"),
        )
        failed = SessionCondition(meter_id="2470", run_types=BOTH, statuses=("TESTING_FAILED", "FAILED"))
        assert failed.fail_on == ("CANCELED", "COMPLETED", "TESTING_PASSED")

    def test_awaited_terminal_statuses_do_not_fail_the_wait(self) -> None:
        fail_on = ("CANCELED", "COMPLETED", "TESTING_FAILED", "TESTING_PASSED")
        assert SessionCondition(meter_id="1", statuses=("FAILED", "PAUSED")).fail_on == fail_on
        assert SessionCondition(meter_id="1", statuses=("COMPLETED",), fail_on=()).fail_on == ()

    def test_a_single_name_is_accepted_instead_of_a_list(self) -> None:
        asked = SessionCondition(meter_id=2470, statuses="completed", fail_on=["FAILED", "FAILED"])  # type: ignore[arg-type]
        assert (asked.meter_id, asked.statuses, asked.fail_on) == ("2470", ("COMPLETED",), ("FAILED",))

    def test_times_are_kept_as_plain_utc(self) -> None:
        local = at(0).astimezone(timezone(timedelta(hours=5)))
        asked = SessionCondition(meter_id="1", since=local, until=pendulum.instance(at(60)))
        assert (type(asked.since), asked.since, asked.since and asked.since.tzinfo) == (datetime, at(0), UTC)
        assert (type(asked.until), asked.until) == (datetime, at(60))


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"meter_id": ""}, "meter_id must be a non-empty text"),
            ({"meter_id": "  "}, "meter_id must be a non-empty text"),
            ({"meter_id": None}, "meter_id must be a non-empty text"),
            ({"meter_id": True}, "meter_id must be a non-empty text"),
            ({"version": ""}, "version must be a non-empty text"),
            ({"session_id": ""}, "session_id must be a non-empty text"),
            ({"run_types": "LIVE"}, "run_type must be one of NORMAL, DEBUG, not 'LIVE'"),
            ({"run_types": ["NORMAL", "LIVE"]}, "run_type must be one of NORMAL, DEBUG, not 'LIVE'"),
            ({"run_types": []}, r"run_type must be one of NORMAL, DEBUG, or a list of both, not \[\]"),
            ({"statuses": ()}, "statuses must name at least one status"),
            ({"statuses": ("",)}, "statuses: '' is no status; Zuora documents TESTING"),
            ({"statuses": 7}, "statuses must be a status or a list of statuses, not 7"),
            ({"statuses": ("NEVER_RUN",)}, "statuses: no session is ever NEVER_RUN"),
            ({"fail_on": ("NEVER_RUN",)}, "fail_on: no session is ever NEVER_RUN"),
            ({"statuses": ("TESTING_PASSED",)}, "only DEBUG sessions reach TESTING_PASSED: add run_type='DEBUG'"),
            ({"fail_on": (None,)}, "fail_on: None is no status"),
            ({"previous_statuses": ("?",)}, "previous_statuses: '[?]' is no status"),
            ({"statuses": ("null",)}, "statuses: 'null' is no status"),
            ({"statuses": ("FAILED",), "fail_on": ("FAILED",)}, "FAILED cannot be in both statuses and fail_on"),
            ({"session_id": "R-1", "since": at(0)}, "session_id and since exclude each other"),
            ({"since": datetime(2026, 1, 1)}, "since must be a datetime with a time zone"),
            ({"until": "2026-01-01"}, "until must be a datetime with a time zone"),
        ],
    )
    def test_the_message_names_the_argument_and_what_is_allowed(
        self, arguments: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            SessionCondition(**{"meter_id": "2470", **arguments})  # type: ignore[arg-type]

    def test_never_run_is_allowed_as_a_previous_status(self) -> None:
        asked = SessionCondition(meter_id="1", statuses=("RUNNING",), previous_statuses=("NEVER_RUN",))
        assert asked.previous_statuses == ("NEVER_RUN",)

    @pytest.mark.parametrize("run_type", RunType)
    def test_unknown_statuses_and_those_of_the_other_run_type_are_allowed(self, run_type: RunType) -> None:
        statuses = ("FAILED", "TESTING_FAILED", "QUARANTINED", "CANCELLED")
        asked = SessionCondition(meter_id="1", run_types=(run_type,), statuses=statuses)
        assert asked.statuses == ("FAILED", "TESTING_FAILED", "QUARANTINED", "CANCELED")
        assert asked.fail_on == ("COMPLETED", "TESTING_PASSED")
        assert asked.outcome_of("QUARANTINED") is Outcome.MET


class TestAtParseTime:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"statuses": "{{ params.status }}"},
            {"statuses": ["COMPLETED", "{{ params.status }}"], "fail_on": ["COMPLETED"]},
            {"run_type": "{{ params.run_type }}", "statuses": "TESTING_PASSED"},
            {"run_type": ["NORMAL", "{{ params.run_type }}"], "statuses": "TESTING_PASSED"},
            {"statuses": object(), "fail_on": object(), "previous_statuses": object()},
            {"statuses": ("COMPLETED",), "fail_on": {"FAILED"}, "previous_statuses": ["RUNNING"]},
        ],
    )
    def test_templates_and_xcoms_are_not_checked_at_parse_time(self, arguments: dict[str, object]) -> None:
        assert validate_statuses(**arguments) is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"statuses": "NEVER_RUN", "fail_on": "{{ params.fail_on }}"}, "statuses: .*NEVER_RUN"),
            ({"statuses": "{{ params.status }}", "fail_on": "NEVER_RUN"}, "fail_on: .*NEVER_RUN"),
            ({"previous_statuses": ["no status"], "statuses": []}, "statuses must name at least one"),
            ({"run_type": "LIVE"}, "run_type must be one of"),
            ({"run_type": ["LIVE", "DEBUG"]}, "run_type must be one of"),
            ({"statuses": "FAILED", "fail_on": "FAILED"}, "both statuses and fail_on"),
        ],
    )
    def test_plain_values_are_checked_at_parse_time(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            validate_statuses(**arguments)

    @pytest.mark.parametrize("name", ["statuses", "fail_on", "previous_statuses"])
    def test_undocumented_statuses_cause_a_warning(self, name: str) -> None:
        with pytest.warns(UserWarning, match=f"{name}: unknown status 'COMPLTED'.* Did you mean COMPLETED[?]"):
            validate_statuses(**{name: ["RUNNING", "complted"]})


class TestJson:
    @given(
        st.sampled_from(sorted(set(SessionStatus) - {"NEVER_RUN"} - DEBUG_ONLY)),
        st.one_of(st.none(), st.integers(0, 100)),
        st.one_of(st.none(), st.integers(100, 10**7)),
    )
    def test_a_condition_survives_the_round_trip(self, status: str, since: int | None, until: int | None) -> None:
        asked = SessionCondition(
            meter_id="2470",
            statuses=(status,),
            since=None if since is None else at(since),
            until=None if until is None else at(until),
        )
        assert SessionCondition.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked

    @pytest.mark.parametrize(
        ("run_types", "stored"), [(("NORMAL",), "NORMAL"), (("DEBUG",), "DEBUG"), (BOTH, ["NORMAL", "DEBUG"])]
    )
    def test_one_run_type_is_stored_as_its_name_and_both_as_a_list(
        self, run_types: tuple[RunType, ...], stored: object
    ) -> None:
        asked = SessionCondition(meter_id="2470", run_types=run_types)
        assert asked.to_dict()["run_type"] == stored
        assert SessionCondition.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked

    def test_an_empty_fail_on_is_distinguished_from_the_default(self) -> None:
        asked = SessionCondition(meter_id="1", fail_on=())
        assert SessionCondition.from_dict(asked.to_dict()).fail_on == ()

    def test_no_status_fails_where_every_end_is_awaited(self) -> None:
        asked = SessionCondition(meter_id="2470", session_id="R-1", statuses=tuple(sorted(ANY_TERMINAL)), fail_on=())
        assert asked.to_dict()["fail_on"] == []  # the pages read it

    def test_unknown_keys_are_left_out_and_missing_ones_defaulted(self) -> None:
        assert SessionCondition.from_dict({"meter_id": "1", "colour": "red"}) == SessionCondition(meter_id="1")
        with pytest.raises(ValueError, match="meter_id"):
            SessionCondition.from_dict({})


class TestJudge:
    NAMED = SessionCondition(meter_id="2470", session_id="R-1")

    @pytest.mark.parametrize(
        ("status", "outcome"),
        [
            ("COMPLETED", Outcome.MET),
            ("FAILED", Outcome.FAILED),
            ("CANCELED", Outcome.FAILED),
            ("PAUSED", Outcome.WAITING),
            ("99", Outcome.WAITING),
        ],
    )
    def test_the_sessions_status_decides(self, status: str, outcome: Outcome) -> None:
        assert judge(self.NAMED, state(status)).outcome is outcome

    def test_a_debug_session_does_not_meet_a_normal_condition(self) -> None:
        verdict = judge(self.NAMED, state("COMPLETED", run_type=RunType.DEBUG))
        assert verdict == Judgement(Outcome.WAITING, "it is a DEBUG session, and a NORMAL one is awaited")

    @pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELED", "TESTING_PASSED", "TESTING_FAILED"])
    @pytest.mark.parametrize("asked", RunType)
    @pytest.mark.parametrize("reported", RunType)
    def test_any_end_of_a_named_session_ends_its_wait(self, status: str, asked: RunType, reported: RunType) -> None:
        verdict = judge(
            SessionCondition(meter_id="2470", session_id="R-1", run_types=(asked,)), state(status, run_type=reported)
        )
        live = reported is RunType.NORMAL and not status.startswith("TESTING")
        met = {RunType.NORMAL: status == "COMPLETED" and live, RunType.DEBUG: status == "TESTING_PASSED"}[asked]
        no_end = asked is RunType.NORMAL and status == "COMPLETED" and not live
        assert verdict.outcome is (Outcome.MET if met else Outcome.WAITING if no_end else Outcome.FAILED)

    @pytest.mark.parametrize("session_id", ["R-1", None])
    @pytest.mark.parametrize("reported", RunType)
    @pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELED", "TESTING_PASSED", "TESTING_FAILED"])
    def test_each_end_ends_a_wait_on_both_run_types(
        self, status: str, reported: RunType, session_id: str | None
    ) -> None:
        asked = SessionCondition(meter_id="2470", session_id=session_id, run_types=BOTH)
        met = status in ("COMPLETED", "TESTING_PASSED")
        assert judge(asked, state(status, run_type=reported)) == Judgement(Outcome.MET if met else Outcome.FAILED)
        verdict = judge(asked, state(status, run_type="CANARY"))
        if status in DEBUG_ONLY:  # then it is a test, by any name
            assert verdict.outcome is not Outcome.WAITING
        else:
            reason = "it is a CANARY session, and a NORMAL or DEBUG one is awaited"
            assert verdict == Judgement(Outcome.WAITING, reason)

    def test_an_unknown_run_type_ends_no_wait(self) -> None:
        verdict = judge(self.NAMED, state("FAILED", run_type="CANARY"))
        assert verdict == Judgement(Outcome.WAITING, "it is a CANARY session, and a NORMAL one is awaited")

    def test_an_awaited_status_of_tests_meets_the_condition(self) -> None:
        asked = SessionCondition(meter_id="2470", session_id="R-1", statuses=("FAILED", "TESTING_FAILED"))
        assert judge(asked, state("TESTING_FAILED")).outcome is Outcome.MET

    def test_the_statuses_of_a_wait_stored_by_an_older_version_are_kept(self) -> None:
        data = {"meter_id": "2470", "session_id": "R-1", "run_type": "DEBUG", "fail_on": ["TESTING_FAILED"]}
        asked = SessionCondition.from_dict({**data, "statuses": ["TESTING_PASSED"]})
        assert asked.fail_on == ("TESTING_FAILED",)
        assert judge(asked, state("CANCELED", run_type=RunType.DEBUG)).outcome is Outcome.WAITING

    def test_an_ambiguous_status_never_ends_the_wait(self) -> None:
        edges = [("RUNNING", "FAILED"), ("FAILED", "RUNNING"), ("RUNNING", "FAILED")]
        unclear = fold([transition(status, before, second) for second, (before, status) in enumerate(edges)])
        assert (unclear.status, unclear.ambiguous) == ("FAILED", True)
        verdict = judge(self.NAMED, unclear)
        assert verdict.outcome is Outcome.WAITING
        assert "do not show its present status" in verdict.reason

    @pytest.mark.parametrize(
        ("before", "status", "outcome", "reason"),
        [
            ("PUSH_COMPLETED", "COMPLETED", Outcome.MET, ""),
            ("RUNNING", "COMPLETED", Outcome.WAITING, "COMPLETED came after RUNNING, not after PUSH_COMPLETED"),
            (None, "COMPLETED", Outcome.WAITING, "the status before COMPLETED is not known"),
            ("RUNNING", "FAILED", Outcome.FAILED, ""),
        ],
    )
    def test_the_previous_status_decides(self, before: str | None, status: str, outcome: Outcome, reason: str) -> None:
        asked = SessionCondition(meter_id="2470", session_id="R-1", previous_statuses=("PUSH_COMPLETED",))
        assert judge(asked, state(status, before)) == Judgement(outcome, reason)

    def test_before_its_first_status_a_session_was_never_run(self) -> None:
        asked = SessionCondition(
            meter_id="2470", session_id="R-1", statuses=("INITIALIZING", "RUNNING"), previous_statuses=("NEVER_RUN",)
        )
        assert judge(asked, state("INITIALIZING", None)).outcome is Outcome.MET
        assert judge(asked, state("RUNNING", None)).outcome is Outcome.WAITING

    @pytest.mark.parametrize("choice", ["fail", "skip"])
    def test_another_previous_status_may_fail_the_wait(self, choice: str) -> None:
        asked = SessionCondition(
            meter_id="2470", session_id="R-1", previous_statuses=("PUSH_COMPLETED",), on_other_previous=choice
        )
        reason = "COMPLETED came after RUNNING, not after PUSH_COMPLETED"
        assert judge(asked, state("COMPLETED", "RUNNING")) == Judgement(Outcome.FAILED, reason)
        assert judge(asked, state("COMPLETED", None)).outcome is Outcome.WAITING
        assert judge(asked, state("COMPLETED", "PUSH_COMPLETED")).outcome is Outcome.MET
        assert SessionCondition.from_dict(asked.to_dict()) == asked

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"on_other_previous": "fail"}, "on_other_previous needs previous_statuses"),
            (
                {"previous_statuses": ("RUNNING",), "on_other_previous": "stop"},
                "on_other_previous must be one of wait, fail, skip, not 'stop'",
            ),
        ],
    )
    def test_an_impossible_choice_for_other_previous_statuses_is_refused(
        self, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            SessionCondition(meter_id="1", **arguments)


def test_the_text_names_no_other_end_where_each_one_is_awaited():
    assert SessionCondition(meter_id="1", statuses=tuple(sorted(ANY_TERMINAL))).in_words().endswith("TESTING_PASSED")
    assert SessionCondition(meter_id="1").in_words() == "COMPLETED (any other end fails it)"
