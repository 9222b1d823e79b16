"""SessionCondition refuses what is impossible, and ``judge`` decides by exact knowledge."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.condition import (
    ALLOWED,
    Outcome,
    SessionCondition,
    Verdict,
    judge,
    validate_statuses,
)
from airflow_mediation_provider.protocol.lifecycle import fold
from airflow_mediation_provider.protocol.status import RunType, SessionStatus
from tests.unit.protocol.tenant import at, state, transition


class TestDefaults:
    def test_normal(self) -> None:
        asked = SessionCondition(meter_id="2470")
        assert (asked.version, asked.statuses, asked.fail_on) == ("0.0.1", ("COMPLETED",), ("CANCELED", "FAILED"))

    def test_debug(self) -> None:
        asked = SessionCondition(meter_id="2470", run_type="debug")  # type: ignore[arg-type]
        assert asked.run_type is RunType.DEBUG
        assert (asked.statuses, asked.fail_on) == (("TESTING_PASSED",), ("TESTING_FAILED",))

    def test_the_terminal_statuses_that_are_asked_for_do_not_fail(self) -> None:
        assert SessionCondition(meter_id="1", statuses=("FAILED", "PAUSED")).fail_on == ("CANCELED", "COMPLETED")
        assert SessionCondition(meter_id="1", statuses=("COMPLETED",), fail_on=()).fail_on == ()

    def test_one_name_is_as_good_as_a_list(self) -> None:
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
            ({"run_type": "LIVE"}, "run_type must be one of NORMAL, DEBUG, not 'LIVE'"),
            ({"statuses": ()}, "statuses must name at least one of RUNNING, PAUSED, COMPLETED"),
            ({"statuses": ("DONE",)}, "statuses: a NORMAL session is never 'DONE'; allowed are RUNNING, PAUSED"),
            ({"statuses": 7}, "statuses must be a status or a list of statuses, not 7"),
            ({"statuses": ("NEVER_RUN",)}, "never 'NEVER_RUN'"),
            ({"statuses": ("TESTING_PASSED",)}, "a NORMAL session is never 'TESTING_PASSED'"),
            (
                {"run_type": "DEBUG", "statuses": ("COMPLETED",)},
                "a DEBUG session is never 'COMPLETED'; allowed are TEST",
            ),
            ({"fail_on": ("LOST",)}, "fail_on: a NORMAL session is never 'LOST'"),
            ({"previous_statuses": ("LOST",)}, "previous_statuses: a NORMAL session is never 'LOST'"),
            ({"statuses": ("FAILED",), "fail_on": ("FAILED",)}, "FAILED cannot be in both statuses and fail_on"),
            ({"session_id": "R-1", "since": at(0)}, "session_id and since exclude each other"),
            ({"since": datetime(2026, 1, 1)}, "since must be a datetime with a time zone"),
            ({"until": "2026-01-01"}, "until must be a datetime with a time zone"),
            ({"since": at(1), "until": at(0)}, r"until \(2026-.* is before since \(2026-"),
        ],
    )
    def test_the_message_names_the_argument_and_what_is_allowed(
        self, arguments: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            SessionCondition(**{"meter_id": "2470", **arguments})  # type: ignore[arg-type]

    def test_never_run_may_have_come_before(self) -> None:
        asked = SessionCondition(meter_id="1", statuses=("RUNNING",), previous_statuses=("NEVER_RUN",))
        assert asked.previous_statuses == ("NEVER_RUN",)

    def test_every_status_but_never_run_is_of_one_run_type(self) -> None:
        assert {*ALLOWED[RunType.NORMAL], *ALLOWED[RunType.DEBUG]} == set(SessionStatus) - {"NEVER_RUN"}
        assert not set(ALLOWED[RunType.NORMAL]) & set(ALLOWED[RunType.DEBUG])


class TestAtParseTime:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"statuses": "{{ params.status }}"},
            {"statuses": ["COMPLETED", "{{ params.status }}"], "fail_on": ["COMPLETED"]},
            {"run_type": "{{ params.run_type }}", "statuses": "TESTING_PASSED"},
            {"statuses": object(), "fail_on": object(), "previous_statuses": object()},
            {"statuses": ("COMPLETED",), "fail_on": {"FAILED"}, "previous_statuses": ["RUNNING"]},
        ],
    )
    def test_what_is_not_known_yet_is_left_for_later(self, arguments: dict[str, object]) -> None:
        assert validate_statuses(**arguments) is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"statuses": "DONE", "fail_on": "{{ params.fail_on }}"}, "statuses: .*'DONE'"),
            ({"statuses": "{{ params.status }}", "fail_on": "DONE"}, "fail_on: .*'DONE'"),
            ({"previous_statuses": ["DONE"]}, "previous_statuses: .*'DONE'"),
            ({"run_type": "LIVE"}, "run_type must be one of"),
            ({"statuses": "FAILED", "fail_on": "FAILED"}, "both statuses and fail_on"),
        ],
    )
    def test_what_is_known_is_checked(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            validate_statuses(**arguments)


class TestJson:
    @given(
        st.sampled_from(sorted(ALLOWED[RunType.NORMAL])),
        st.one_of(st.none(), st.integers(0, 100)),
        st.one_of(st.none(), st.integers(100, 10**7)),
    )
    def test_there_and_back(self, status: str, since: int | None, until: int | None) -> None:
        asked = SessionCondition(
            meter_id="2470",
            statuses=(status,),
            since=None if since is None else at(since),
            until=None if until is None else at(until),
        )
        assert SessionCondition.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked

    def test_nothing_fails_is_kept_apart_from_the_default(self) -> None:
        asked = SessionCondition(meter_id="1", fail_on=())
        assert SessionCondition.from_dict(asked.to_dict()).fail_on == ()

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
    def test_its_status_decides(self, status: str, outcome: Outcome) -> None:
        assert judge(self.NAMED, state(status)).outcome is outcome

    def test_a_test_is_no_live_session(self) -> None:
        verdict = judge(self.NAMED, state("COMPLETED", run_type=RunType.DEBUG))
        assert verdict == Verdict(Outcome.WAITING, "it is a DEBUG session, and a NORMAL one is awaited")

    def test_what_is_ambiguous_never_ends_it(self) -> None:
        edges = [("RUNNING", "FAILED"), ("FAILED", "RUNNING"), ("RUNNING", "FAILED")]
        unclear = fold([transition(status, before, second) for second, (before, status) in enumerate(edges)])
        assert (unclear.status, unclear.ambiguous) == ("FAILED", True)
        verdict = judge(self.NAMED, unclear)
        assert verdict.outcome is Outcome.WAITING
        assert "do not tell its present status" in verdict.reason

    @pytest.mark.parametrize(
        ("before", "status", "outcome", "reason"),
        [
            ("PUSH_COMPLETED", "COMPLETED", Outcome.MET, ""),
            ("RUNNING", "COMPLETED", Outcome.WAITING, "COMPLETED came after RUNNING, which was not asked for"),
            (None, "COMPLETED", Outcome.WAITING, "the status before COMPLETED is not known"),
            ("RUNNING", "FAILED", Outcome.FAILED, ""),
        ],
    )
    def test_the_status_before(self, before: str | None, status: str, outcome: Outcome, reason: str) -> None:
        asked = SessionCondition(meter_id="2470", session_id="R-1", previous_statuses=("PUSH_COMPLETED",))
        assert judge(asked, state(status, before)) == Verdict(outcome, reason)
