"""Exceptions that end a task, beside the tree of ``protocol.errors``, and a retry policy that knows them all.

Those that a retry cannot help are ``AirflowFailException`` too, so Airflow does not retry them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from airflow_mediation_provider.protocol.errors import (
    CapacityError,
    DuplicateKeyError,
    MediationError,
    MisconfigurationError,
    NotRunningError,
    PermanentError,
    StopInProgressError,
    TransientError,
)

if TYPE_CHECKING:
    from airflow.sdk.definitions.retry_policy import RetryPolicy

__all__ = [
    "CapacityError",
    "DuplicateKeyError",
    "MediationError",
    "MediationMisconfigured",
    "MediationUnreachable",
    "MeterRunFailed",
    "MeterSessionError",
    "MeterSessionFailed",
    "MeterSessionTimeout",
    "MeterSessionUncertain",
    "MisconfigurationError",
    "NotRunningError",
    "PermanentError",
    "StopInProgressError",
    "TransientError",
    "mediation_retry_policy",
]


class MeterSessionError(MediationError, AirflowFailException):  # type: ignore[misc]  # both have a status_code
    """A wait for a session ended without its condition; not retried, for asking again changes nothing.

    :param message: one sentence for the user
    :param session: the session as JSON with its evidence, where it is known
    """

    def __init__(self, message: str, *, session: dict[str, Any] | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.session = session


class MeterSessionFailed(MeterSessionError):  # noqa: N818  # what happened to the session, as Airflow names its own
    """The session reached a status of ``fail_on``: it is dead."""


class MeterSessionTimeout(MeterSessionError):  # noqa: N818
    """The deadline passed; the message says the last status and since when."""


class MeterSessionUncertain(MeterSessionError):  # noqa: N818
    """Certainty was required, and what is known of the session does not prove how it ended."""


class MediationMisconfigured(MediationError, AirflowFailException):  # type: ignore[misc]  # noqa: N818
    """Credentials, permission, connection or meter are wrong; not retried."""


class MeterRunFailed(MediationError):  # noqa: N818
    """The session that a task itself had started reached a status of ``fail_on``; retried, with a new session.

    :param message: one sentence for the user
    :param session: the session as JSON with its evidence
    """

    def __init__(self, message: str, *, session: dict[str, Any] | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.session = session


class MediationUnreachable(MediationError):  # noqa: N818
    """Zuora could not be asked for longer than ``max_unreachable``; retried, and the retry waits on."""


def mediation_retry_policy(
    *, retry_delay: timedelta | None = None, capacity_delay: timedelta = timedelta(minutes=5)
) -> RetryPolicy:
    """Return a ``retry_policy`` for tasks that call Mediation by themselves, in ``@task`` functions say.

    What passes by itself is retried, a tenant at its limit of running meters later, what will be refused again fails at
    once. Everything else goes by the task's own ``retries``.

    :param retry_delay: between retries of what passes by itself; the task's own by default
    :param capacity_delay: before the next try when the tenant's meters all run
    :raises RuntimeError: Airflow is older than 3.3 and has no retry policies
    """
    from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

    if not AIRFLOW_V_3_3_PLUS:
        raise RuntimeError("mediation_retry_policy() needs Airflow 3.3 or later: older ones have no retry policies")
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

    return ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=CapacityError,
                action=RetryAction.RETRY,
                retry_delay=capacity_delay,
                reason="Zuora's limit of running meters is reached",
            ),
            RetryRule(exception=PermanentError, action=RetryAction.FAIL, reason="Zuora would refuse it again"),
            RetryRule(
                exception=[TransientError, MediationUnreachable, MeterRunFailed],
                action=RetryAction.RETRY,
                retry_delay=retry_delay,
                reason="asking or starting again can help",
            ),
        ]
    )
