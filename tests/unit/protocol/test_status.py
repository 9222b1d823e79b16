"""Statuses as Zuora writes them: codes, digits, names, and undocumented ones."""

from __future__ import annotations

import pytest

from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    CODE_BY_STATUS,
    ENDS_BY_POLL,
    STATUS_BY_CODE,
    SUCCESS,
    RunType,
    SessionStatus,
    parse_status,
    run_type_shown,
    status_name,
    warn_of_unknown,
)


@pytest.mark.parametrize(("code", "status"), STATUS_BY_CODE.items())
def test_every_code_has_its_status(code: int, status: SessionStatus) -> None:
    assert parse_status(code) == parse_status(str(code)) == parse_status(status.lower()) == status
    assert type(parse_status(code)) is str


@pytest.mark.parametrize(
    ("value", "description", "status"),
    [
        (5, "Anything else", "RUNNING"),
        (14, "Stopping", "STOPPING"),
        ("14", None, "14"),
        (14, "null", "14"),
        (None, "completed", "COMPLETED"),
        ("null", "FAILED", "FAILED"),
        ("", "TESTING PASSED", "TESTING_PASSED"),
        (" Push Completed ", "x", "PUSH_COMPLETED"),
        ("hibernating", None, "HIBERNATING"),
        (True, "PAUSED", "PAUSED"),
    ],
)
def test_a_status_is_parsed_from_code_and_name(value: object, description: object, status: str) -> None:
    assert parse_status(value, description) == status


@pytest.mark.parametrize("nothing", [None, "", "  ", "null", "NULL", False])
def test_an_empty_status_is_refused(nothing: object) -> None:
    with pytest.raises(ValueError, match="empty"):
        parse_status(nothing)
    with pytest.raises(ValueError, match="empty"):
        parse_status(None, nothing)


def test_the_documented_codes_are_all_there() -> None:
    assert sorted(STATUS_BY_CODE) == list(range(1, 14))
    assert set(SessionStatus) - set(CODE_BY_STATUS) == {"STOPPING"}
    assert all(STATUS_BY_CODE[CODE_BY_STATUS[status]] is status for status in CODE_BY_STATUS)


def test_the_terminal_statuses_of_each_run_type() -> None:
    assert {"COMPLETED", "FAILED", "CANCELED", "TESTING_PASSED", "TESTING_FAILED"} == ANY_TERMINAL
    assert all(SUCCESS[run_type] in ENDS_BY_POLL[run_type] for run_type in RunType)
    assert ENDS_BY_POLL[RunType.NORMAL] & ENDS_BY_POLL[RunType.DEBUG] == {"CANCELED"}
    assert ENDS_BY_POLL[RunType.NORMAL] | ENDS_BY_POLL[RunType.DEBUG] == ANY_TERMINAL


@pytest.mark.parametrize(
    ("spelt", "status"),
    [
        ("CANCELLED", "CANCELED"),
        ("cancelled", "CANCELED"),
        ("USAGE-PUSHING", "USAGE_PUSHING"),
        ("TestingPassed", "TESTING_PASSED"),
        ("testing.failed", "TESTING_FAILED"),
        ("never run", "NEVER_RUN"),
        ("COMPLETED_LATE", "COMPLETED_LATE"),
    ],
)
def test_only_the_letters_of_a_name_count(spelt: str, status: str) -> None:
    assert parse_status(spelt) == parse_status(None, spelt) == status


@pytest.mark.parametrize(
    ("status", "before", "run_type"),
    [
        ("TESTING_PASSED", "RUNNING", "DEBUG"),
        ("CANCELED", "TESTING", "DEBUG"),
        ("CANCELED", "RUNNING", "NORMAL"),
        ("CANCELED", None, "NORMAL"),
        ("COMPLETED", "TESTING", "NORMAL"),
    ],
)
def test_an_end_polled_after_a_test_is_the_end_of_that_test(status: str, before: str | None, run_type: str) -> None:
    assert run_type_shown(status, before) == run_type


def test_an_unknown_status_causes_a_warning() -> None:
    with pytest.warns(UserWarning, match="statuses: unknown status 'COMPLTED', .* Did you mean COMPLETED[?] Zuora doc"):
        warn_of_unknown("statuses", ["COMPLETED", "COMPLTED"])
    with pytest.warns(UserWarning, match="exactly this status. Zuora documents TESTING"):
        warn_of_unknown("statuses", ["QUARANTINED"])


@pytest.mark.parametrize("value", ["", "  ", None, True, ["FAILED"], "{{ x }}", "A" * 65, "no-status!"])
def test_a_text_that_is_not_a_name_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"status"):
        status_name("statuses", value)
