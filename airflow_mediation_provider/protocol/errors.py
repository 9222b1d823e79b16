"""The one tree of errors: what went wrong at Zuora, whether asking again can help, and what to do next.

Transient, permanent and misconfigured are classes of their own, because each is answered differently: a wait goes on
through a transient error, a permanent one ends the call, and a misconfiguration ends the task at once with a sentence.

Source of the codes: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/error-message-reference-for-mediation
"""

from __future__ import annotations


class MediationError(Exception):
    """Anything that this provider raises on purpose.

    :param message: one sentence that says what was wrong, where, and what to do
    :param code: Zuora's error code (digits as text), where Zuora gave one
    :param zuora_message: Zuora's own words, where it gave some
    :param status_code: HTTP status of the reply, where there was one
    :param request_id: ``Zuora-Request-Id`` of the reply, to quote to Zuora's support
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        zuora_message: str | None = None,
        status_code: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.zuora_message = zuora_message
        self.status_code = status_code
        self.request_id = request_id


class TransientError(MediationError):
    """Zuora could not be asked just now: asking again later may help (429, 5xx, transport, a body that is not JSON).

    :param retry_after: seconds that Zuora asked us to wait, where it did
    """

    def __init__(self, message: str, *, retry_after: float | None = None, **details: object) -> None:
        super().__init__(message, **details)  # type: ignore[arg-type]
        self.retry_after = retry_after


class PermanentError(MediationError):
    """Zuora understood and refused: the same request will be refused again."""


class MisconfigurationError(PermanentError):
    """Set up wrongly: host, credentials, permission, unknown meter, or Mediation not enabled."""


class DuplicateKeyError(PermanentError):
    """The ``uniqueKey`` of a run was used before: that run was started, and no second one is."""


class CapacityError(PermanentError):
    """The tenant's maximum number of meters (5) runs already; the meter was not started."""


class NotRunningError(PermanentError):
    """Stop: no run of the meter version is active (70002122)."""


class StopInProgressError(PermanentError):
    """Stop: a stop of the meter version is under way already (70003043)."""
