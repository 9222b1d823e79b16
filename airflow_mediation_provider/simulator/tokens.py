"""OAuth of the simulator: issues bearer tokens for client credentials, and checks them.

Source: https://developer.zuora.com/v1-api-reference/api/operation/createToken/
"""

from __future__ import annotations

import hmac
import uuid
from typing import TYPE_CHECKING, Final

from airflow_mediation_provider.simulator.messages import Call, Reply
from airflow_mediation_provider.simulator.sessions import Refusal

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator.clock import Clock
    from airflow_mediation_provider.simulator.config import SimulatorConfig
    from airflow_mediation_provider.simulator.event_log import EventLog

MARK: Final = "simulator-token-"
"""By it a token is found in a log."""


class Tokens:
    """The tokens that were issued."""

    def __init__(self, clock: Clock, log: EventLog) -> None:
        self._clock = clock
        self._log = log
        self._tokens: dict[str, tuple[int, float]] = {}
        self._issued = 0

    def issue(self, call: Call, config: SimulatorConfig) -> Reply:
        """Answer ``POST /oauth/token``; every try is in the log, secrets are not.

        :raises Refusal: 400 no form or another grant type, 401 wrong credentials
        """
        form = call.form()
        client = form.get("client_id", "")
        if not call.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            self._refuse(client, "The token request is not application/x-www-form-urlencoded.", 400)
        if form.get("grant_type") != "client_credentials":
            self._refuse(client, "grant_type must be client_credentials.", 400)
        known = hmac.compare_digest(client.encode(), config.client_id.encode())
        secret = form.get("client_secret", "").encode()
        if not hmac.compare_digest(secret, config.client_secret.encode()) or not known:
            self._refuse(client, "Invalid client id or client secret.", 401)
        self._issued += 1
        token = f"{MARK}{uuid.uuid4().hex}"
        self._tokens[token] = (self._issued, self._clock.now() + config.token_life)
        self._log.add("token", granted=True, number=self._issued, client_id=client)
        return Reply(
            body={
                "access_token": token,
                "token_type": "bearer",
                "expires_in": int(config.token_life),
                "scope": "service.mediation.simulator",
                "jti": uuid.uuid4().hex,
            }
        )

    def _refuse(self, client: str, message: str, status: int) -> None:
        self._log.add("token", granted=False, status=status, client_id=client)
        raise Refusal(message, status=status)

    def number(self, call: Call) -> int | None:
        """Return which token (1 is the first one issued) a request has, ``None`` if it has no valid one."""
        scheme, _, token = call.headers.get("authorization", "").partition(" ")
        number, until = self._tokens.get(token.strip(), (0, 0.0))
        return number if scheme.lower() == "bearer" and self._clock.now() < until else None

    def expire(self) -> int:
        """Invalidate all tokens; returns how many were valid until now."""
        now = self._clock.now()
        good = sum(now < until for _, until in self._tokens.values())
        self._tokens.clear()
        return good
