"""The tree of errors: what went wrong at Zuora, whether a retry can help, and what to do next.

Transient, permanent and misconfigured are separate classes, because each is handled differently: a wait goes on through
a transient error, a permanent one ends the call, and a misconfiguration fails the task at once with a clear message.

Source of the codes: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/error-message-reference-for-mediation
"""

from __future__ import annotations

from typing import Any


class MediationError(Exception):
    """Base of the errors that this provider raises on purpose.

    :param message: one sentence: what was wrong, where, and what to do
    :param code: Zuora's error code (digits as text), where Zuora gave one
    :param zuora_message: Zuora's own message, where it gave one
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
    """Zuora gave no usable answer: a later retry may help (429, 5xx, transport, a body that is not JSON).

    :param retry_after: seconds that Zuora asked us to wait, where it did
    :param nothing_done: it is certain that the call was not carried out, so even a run call may be sent again
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, nothing_done: bool = False, **details: object
    ) -> None:
        super().__init__(message, **details)  # type: ignore[arg-type]
        self.retry_after = retry_after
        self.nothing_done = nothing_done


class UnusableAddressError(TransientError):
    """The address cannot work as it is set up: no such host name, TLS on a plain port, an untrusted certificate.

    Where Zuora answered before at this address, it is an outage; where nothing ever answered, it is final.
    """


class PermanentError(MediationError):
    """Zuora refused the request, and a retry cannot help: the request, the set-up or a rule of Zuora has to change."""


class UnknownRefusalError(PermanentError):
    """Zuora refused a read for a reason that it does not document: the read is repeated before the refusal is final."""


class MisconfigurationError(PermanentError):
    """The set-up is wrong: host, credentials, permission, unknown meter, or Mediation not enabled."""


class DuplicateKeyError(PermanentError):
    """The ``uniqueKey`` of a run was used before: that run was started, and Zuora starts no second one."""


class CapacityError(PermanentError):
    """The tenant already runs its maximum number of meters (5); the meter was not started."""


class NotRunningError(PermanentError):
    """Stop: no run of the meter version is active (70002122)."""


class StopInProgressError(PermanentError):
    """Stop: a stop of the meter version is under way already (70003043)."""


def details_of(error: MediationError) -> dict[str, Any]:
    """Return Zuora's code, message, HTTP status and request id, for an error that takes the place of this one."""
    return {
        "code": error.code,
        "zuora_message": error.zuora_message,
        "status_code": error.status_code,
        "request_id": error.request_id,
    }


def is_final(error: MediationError) -> bool:
    """Return whether no retry of the same call can help.

    A free place for a run, the end of a stop and the cause of an undocumented refusal can come with time.
    """
    return isinstance(error, PermanentError) and not isinstance(
        error, CapacityError | StopInProgressError | UnknownRefusalError
    )
