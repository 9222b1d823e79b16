"""The errors of this package, and a retry policy for all of them.

Hooks raise ``PermanentError``, ``TransientError`` and their subclasses; operators and the sensor raise the others too.
Those of the others where a retry cannot help are also ``AirflowFailException``, so Airflow does not retry them.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from airflow.sdk.exceptions import AirflowFailException

from airflow_mediation_provider.protocol.zuora.errors import (
    CapacityError,
    DuplicateKeyError,
    MediationError,
    MisconfigurationError,
    NotRunningError,
    PermanentError,
    StopInProgressError,
    TransientError,
    UnknownRefusalError,
    UnusableAddressError,
    details_of,
    is_final,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.sdk.definitions.retry_policy import RetryPolicy

    from airflow_mediation_provider.protocol.sessions.session_result import SessionResult

__all__ = [
    "AuditExportFailed",
    "AuditExportTimeout",
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
    "UnknownRefusalError",
    "UnusableAddressError",
    "mediation_retry_policy",
]


class MeterSessionError(MediationError, AirflowFailException):  # type: ignore[misc]  # both have a status_code
    """A wait for a session ended without its condition; not retried, because another attempt would end the same way.

    :param message: one sentence for the user
    :param session: the session, where it is known
    """

    def __init__(self, message: str, *, session: SessionResult | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.session = session


class MeterSessionFailed(MeterSessionError):  # noqa: N818  # what happened to the session, as Airflow names its own
    """The session reached a status of ``fail_on``."""


class MeterSessionTimeout(MeterSessionError):  # noqa: N818
    """The deadline passed; the message contains the last status and its time."""


class MeterSessionUncertain(MeterSessionError):  # noqa: N818
    """Certainty was required, and the evidence does not prove how the session ended."""


class MediationMisconfigured(MediationError, AirflowFailException):  # type: ignore[misc]  # noqa: N818
    """Credentials, permission, connection, meter or an argument are wrong; not retried."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Make it from the error that was raised below, with the same sentence, and Zuora's code and message.

        :meta private:
        """
        return cls(str(error), **(details_of(error) if isinstance(error, MediationError) else {}))


class MeterRunFailed(MediationError):  # noqa: N818
    """The session that the task itself started reached a status of ``fail_on``; retried, with a new session.

    :param message: one sentence for the user
    :param session: the session
    """

    def __init__(self, message: str, *, session: SessionResult | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.session = session


class AuditExportFailed(MediationError):  # noqa: N818
    """The export job ended without files; retried, with a new job."""


class AuditExportTimeout(MediationError, AirflowFailException):  # type: ignore[misc]  # noqa: N818
    """The export job was not finished at the deadline; not retried, as after every other timeout of a wait."""


class MediationUnreachable(MediationError):  # noqa: N818
    """Zuora gave no good answer for longer than ``max_unreachable``; retried, and the retry continues the wait."""


@contextmanager
def fail_permanently() -> Iterator[None]:
    """Raise errors that no retry can help as ``MediationMisconfigured``, which Airflow does not retry.

    Those are final refusals, an address that cannot work, and ``ValueError`` of a rendered argument. The log has the
    sentence once: the new error takes the place of the old one.

    Example::

        with fail_permanently(), MediationHook() as hook:
            hook.stop_meter("1001")

    :raises MediationMisconfigured: no retry can help
    """
    try:
        yield
    except AirflowFailException:
        raise
    except ValueError as error:
        raise MediationMisconfigured.of(error) from None
    except MediationError as error:
        if isinstance(error, UnusableAddressError) or is_final(error):
            raise MediationMisconfigured.of(error) from None
        raise


def mediation_retry_policy(
    *, retry_delay: timedelta | None = None, capacity_delay: timedelta = timedelta(minutes=5)
) -> RetryPolicy:
    """Return a ``retry_policy`` for tasks that call Mediation by themselves, for example ``@task`` functions.

    Temporary errors are retried, a tenant at its limit of running meters after a longer delay, and errors that would
    recur fail at once. All other errors follow the task's own ``retries``.

    :param retry_delay: between retries of temporary errors; the task's own by default
    :param capacity_delay: before the next try when the tenant is at its limit of running meters
    :raises RuntimeError: Airflow is older than 3.3 and has no retry policies
    """
    from airflow_mediation_provider.version_compat import AIRFLOW_V_3_3_PLUS

    if not AIRFLOW_V_3_3_PLUS:
        raise RuntimeError("mediation_retry_policy() needs Airflow 3.3 or later: older versions have no retry policies")
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

    return ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=CapacityError,
                action=RetryAction.RETRY,
                retry_delay=capacity_delay,
                reason="Zuora's limit of running meters is reached",
            ),
            RetryRule(
                exception=UnusableAddressError,
                action=RetryAction.FAIL,
                reason="the address cannot work as it is set up",
            ),
            RetryRule(
                exception=[StopInProgressError, UnknownRefusalError],
                action=RetryAction.RETRY,
                retry_delay=retry_delay,
                reason="the cause can pass",
            ),
            RetryRule(exception=PermanentError, action=RetryAction.FAIL, reason="no retry can help"),
            RetryRule(
                exception=[TransientError, MediationUnreachable, MeterRunFailed, AuditExportFailed],
                action=RetryAction.RETRY,
                retry_delay=retry_delay,
                reason="another attempt can help",
            ),
        ]
    )
