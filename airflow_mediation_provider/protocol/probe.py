"""What the answer to the connection test proves: a token was given, and a meter asked for that cannot exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_mediation_provider.protocol.refusals import METER_UNKNOWN, NO_PERMISSION, NOT_ENABLED, code_by_words

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.errors import MediationError

_UNPROVEN = (
    "Not proven, as Zuora has no call for it: the permission to run and stop meters ('Run Meters'), and that the "
    "meters that your DAGs name exist."
)


def judge_probe(host: str, error: MediationError | None) -> tuple[bool, str]:
    """Say whether the connection works, and which part of it does not.

    :param error: how the call for the status of an impossible meter was refused; ``None``: it was not
    """
    code, status = (error.code or code_by_words(error.zuora_message), error.status_code) if error else (None, None)
    if error is None or code in METER_UNKNOWN or (status == 404 and code):
        return True, f"{host} knows the client id and secret, and Mediation answers. {_UNPROVEN}"
    granted = f"{host} gave a token, so the client id and secret are right, but"
    if code == NOT_ENABLED:
        return False, f"{granted} Mediation is not enabled in this tenant. {error}"
    if code == NO_PERMISSION or status == 403:
        return False, f"{granted} the permission is missing. {error}"
    if status == 404:
        return False, f"{granted} there is no Mediation API at this address: check the host. {error}"
    if status == 400 and code and code.startswith("7000"):
        return True, f"{host} knows the client id and secret, and Mediation answers, if oddly: {error} {_UNPROVEN}"
    return False, f"{granted} Mediation could not be proven. {error}"
