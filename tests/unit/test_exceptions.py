"""Which errors end a task without a retry, and how the retry policy of Airflow 3.3 treats the others."""

from __future__ import annotations

import copy
from datetime import timedelta

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mediation_provider import exceptions
from airflow_mediation_provider.exceptions import (
    AuditExportFailed,
    AuditExportTimeout,
    CapacityError,
    DuplicateKeyError,
    MediationError,
    MediationMisconfigured,
    MediationUnreachable,
    MeterRunFailed,
    MeterSessionFailed,
    MeterSessionTimeout,
    MeterSessionUncertain,
    MisconfigurationError,
    NotRunningError,
    PermanentError,
    StopInProgressError,
    TransientError,
    UnknownRefusalError,
    UnusableAddressError,
    fail_permanently,
    mediation_retry_policy,
)
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS


@pytest.mark.parametrize(
    "kind",
    [MeterSessionFailed, MeterSessionTimeout, MeterSessionUncertain, MediationMisconfigured, AuditExportTimeout],
)
def test_an_error_that_would_recur_is_not_retried(kind):
    error = kind("why", code="70002103")

    assert isinstance(error, AirflowFailException)
    assert isinstance(error, MediationError)
    assert (str(error), error.code) == ("why", "70002103")
    assert error.serialize()[1] == ("why",)


def test_a_temporary_error_is_retried():
    assert not isinstance(MediationUnreachable("why"), AirflowFailException)
    assert not isinstance(MeterRunFailed("why"), AirflowFailException)
    assert not isinstance(AuditExportFailed("why"), AirflowFailException)


def test_an_error_contains_the_session():
    assert MeterSessionFailed("why", session={"session_id": "R-1"}).session == {"session_id": "R-1"}
    assert MeterSessionTimeout("why").session is None


@pytest.mark.parametrize("name", exceptions.__all__)
def test_each_public_name_exists(name):
    assert hasattr(exceptions, name)


@pytest.mark.parametrize("kind", [MeterSessionFailed, TransientError, CapacityError])
def test_a_pickled_error_is_complete(kind):
    error = kind("why", code="c", request_id="r")

    again = copy.copy(error)

    assert type(again) is kind
    assert (str(again), again.code, again.request_id) == ("why", "c", "r")


if AIRFLOW_V_3_3_PLUS:

    @pytest.mark.parametrize(
        ("error", "action", "delay"),
        [
            (TransientError("x"), "retry", timedelta(seconds=7)),
            (MediationUnreachable("x"), "retry", timedelta(seconds=7)),
            (AuditExportFailed("x"), "retry", timedelta(seconds=7)),
            (CapacityError("x"), "retry", timedelta(minutes=5)),
            (MisconfigurationError("x"), "fail", None),
            (PermanentError("x"), "fail", None),
            (DuplicateKeyError("x"), "fail", None),
            (NotRunningError("x"), "fail", None),
            (StopInProgressError("x"), "retry", timedelta(seconds=7)),
            (UnknownRefusalError("x"), "retry", timedelta(seconds=7)),
            (UnusableAddressError("x"), "fail", None),
            (KeyError("x"), "default", None),
        ],
    )
    def test_the_retry_policy_decides_by_the_error(error, action, delay):
        decision = mediation_retry_policy(retry_delay=timedelta(seconds=7)).evaluate(error, 1, 3)

        assert decision.action.value == action
        assert decision.retry_delay == delay

    def test_the_retry_policy_survives_serialization():
        from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy

        again = ExceptionRetryPolicy.deserialize(mediation_retry_policy().serialize())

        assert again.evaluate(CapacityError("x"), 1, 3).retry_delay == timedelta(minutes=5)


def test_before_airflow_3_3_the_retry_policy_is_refused(monkeypatch):
    monkeypatch.setattr("airflow_mediation_provider.version_compat.AIRFLOW_V_3_3_PLUS", False)

    with pytest.raises(RuntimeError, match="needs Airflow 3"):
        mediation_retry_policy()


@pytest.mark.parametrize(
    "error",
    [
        MisconfigurationError("wrong", code="70002103", zuora_message="no", status_code=404, request_id="r"),
        PermanentError("wrong", code="70002103", zuora_message="no", status_code=404, request_id="r"),
        UnusableAddressError("wrong", code="70002103", zuora_message="no", status_code=404, request_id="r"),
    ],
)
def test_what_no_retry_can_help_fails_permanently_with_its_sentence_once(error):
    with pytest.raises(MediationMisconfigured, match=r"^wrong$") as caught, fail_permanently():
        raise error

    final = caught.value
    assert (final.code, final.zuora_message, final.status_code, final.request_id) == ("70002103", "no", 404, "r")
    assert final.__suppress_context__


@pytest.mark.parametrize(
    "error",
    [
        TransientError("x"),
        CapacityError("x"),
        StopInProgressError("x"),
        UnknownRefusalError("x"),
        MeterSessionTimeout("x"),
        KeyError("x"),
    ],
)
def test_what_can_pass_is_raised_as_it_is(error):
    with pytest.raises(type(error)) as caught, fail_permanently():
        raise error

    assert caught.value is error
