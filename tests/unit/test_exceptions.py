"""Which errors end a task for good, and what the retry policy of Airflow 3.3 makes of the others."""

from __future__ import annotations

import copy
from datetime import timedelta

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mediation_provider import exceptions
from airflow_mediation_provider.exceptions import (
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
    mediation_retry_policy,
)
from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS


@pytest.mark.parametrize(
    "kind", [MeterSessionFailed, MeterSessionTimeout, MeterSessionUncertain, MediationMisconfigured]
)
def test_not_retried(kind):
    error = kind("why", code="70002103")

    assert isinstance(error, AirflowFailException)
    assert isinstance(error, MediationError)
    assert (str(error), error.code) == ("why", "70002103")
    assert error.serialize()[1] == ("why",)


def test_retried():
    assert not isinstance(MediationUnreachable("why"), AirflowFailException)
    assert not isinstance(MeterRunFailed("why"), AirflowFailException)


def test_the_session_is_at_hand():
    assert MeterSessionFailed("why", session={"session_id": "R-1"}).session == {"session_id": "R-1"}
    assert MeterSessionTimeout("why").session is None


@pytest.mark.parametrize("name", exceptions.__all__)
def test_all_names_are_there(name):
    assert hasattr(exceptions, name)


@pytest.mark.parametrize("kind", [MeterSessionFailed, TransientError, CapacityError])
def test_a_copy_is_whole(kind):
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
            (CapacityError("x"), "retry", timedelta(minutes=5)),
            (MisconfigurationError("x"), "fail", None),
            (PermanentError("x"), "fail", None),
            (DuplicateKeyError("x"), "fail", None),
            (NotRunningError("x"), "fail", None),
            (StopInProgressError("x"), "fail", None),
            (KeyError("x"), "default", None),
        ],
    )
    def test_retry_policy(error, action, delay):
        decision = mediation_retry_policy(retry_delay=timedelta(seconds=7)).evaluate(error, 1, 3)

        assert decision.action.value == action
        assert decision.retry_delay == delay

    def test_retry_policy_survives_serialization():
        from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy

        again = ExceptionRetryPolicy.deserialize(mediation_retry_policy().serialize())

        assert again.evaluate(CapacityError("x"), 1, 3).retry_delay == timedelta(minutes=5)


def test_no_retry_policy_before_airflow_3_3(monkeypatch):
    monkeypatch.setattr("airflow_mediation_provider.version_compat.AIRFLOW_V_3_3_PLUS", False)

    with pytest.raises(RuntimeError, match="needs Airflow 3"):
        mediation_retry_policy()
