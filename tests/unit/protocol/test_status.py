"""Statuses as Zuora writes them: codes, digits, names, and what it does not document."""

from __future__ import annotations

import pytest

from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    CODE_BY_STATUS,
    STATUS_BY_CODE,
    SUCCESS,
    TERMINAL,
    RunType,
    SessionStatus,
    parse_status,
)


@pytest.mark.parametrize(("code", "status"), STATUS_BY_CODE.items())
def test_every_code(code: int, status: SessionStatus) -> None:
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
def test_code_and_name(value: object, description: object, status: str) -> None:
    assert parse_status(value, description) == status


@pytest.mark.parametrize("nothing", [None, "", "  ", "null", "NULL", False])
def test_nothing_is_no_status(nothing: object) -> None:
    with pytest.raises(ValueError, match="empty"):
        parse_status(nothing)
    with pytest.raises(ValueError, match="empty"):
        parse_status(None, nothing)


def test_the_documented_codes_are_all_there() -> None:
    assert sorted(STATUS_BY_CODE) == list(range(1, 14))
    assert set(SessionStatus) - set(CODE_BY_STATUS) == {"STOPPING"}
    assert all(STATUS_BY_CODE[CODE_BY_STATUS[status]] is status for status in CODE_BY_STATUS)


def test_ends() -> None:
    assert {"COMPLETED", "FAILED", "CANCELED", "TESTING_PASSED", "TESTING_FAILED"} == ANY_TERMINAL
    assert all(SUCCESS[run_type] in TERMINAL[run_type] for run_type in RunType)
    assert not TERMINAL[RunType.NORMAL] & TERMINAL[RunType.DEBUG]
