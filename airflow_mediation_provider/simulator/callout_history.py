"""The callout history of the simulator's API, and sending callouts again; no I/O.

Source: https://developer.zuora.com/v1-api-reference/api/operation/GET_CalloutHistory/ and
https://developer.zuora.com/v1-api-reference/api/operation/POST_ResendCalloutNotifications/
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from airflow_mediation_provider.simulator.callout_templates import context
from airflow_mediation_provider.simulator.messages import Call, Reply
from airflow_mediation_provider.simulator.sessions import INVALID_PARAMETER, Refusal

if TYPE_CHECKING:
    import re

    from airflow_mediation_provider.simulator.callout_config import DeliverySettings
    from airflow_mediation_provider.simulator.callouts import Callouts, Record
    from airflow_mediation_provider.simulator.engine import Engine

PATH: Final = "/v1/notification-history/callout"
RESEND: Final = "/notifications/callout-histories/resend"
_TIME: Final = "%Y-%m-%dT%H:%M:%S"
_MOST_PER_PAGE: Final = 40
_MOST_RESENT: Final = 1000
_OK: Final = 200


class CalloutHistory:
    """Answers the calls about the callout history.

    :param engine: has the settings and the clock
    :param callouts: the callouts
    """

    def __init__(self, engine: Engine, callouts: Callouts) -> None:
        self._engine = engine
        self._callouts = callouts
        self.base_url = ""

    def read(self, call: Call, _: re.Match[str]) -> Reply:
        """Answer ``GET /v1/notification-history/callout``, the newest first, page by page.

        :raises Refusal: a parameter is wrong
        """
        delivery = self._engine.config.delivery
        page, size = _number(call, "page", 1), _number(call, "pageSize", 20)
        if call.one("page") and not call.one("pageSize"):
            raise Refusal("pageSize must be set before page.", INVALID_PARAMETER)
        if not 1 <= size <= _MOST_PER_PAGE or page < 1:
            raise Refusal(f"page must be >= 1 and pageSize 1 to {_MOST_PER_PAGE}.", INVALID_PARAMETER)
        zone = ZoneInfo(delivery.history_timezone)
        now = datetime.fromtimestamp(self._engine.clock.now(), UTC)
        # Without an end everything until now counts, this very second too.
        until = _time(call, "endTime", zone) or now.replace(microsecond=0) + timedelta(seconds=1)
        since = _time(call, "startTime", zone) or until - timedelta(days=1)
        appeared = now.timestamp() - delivery.history_delay * self._engine.config.time_scale
        failed_only, category = _flag(call, "failedOnly", default=True), call.one("eventCategory")
        found = [
            record
            for record in reversed(self._callouts.history)
            if since.timestamp() <= record.at <= until.timestamp()
            and record.at <= appeared
            and not (failed_only and record.answer.code == _OK)
            and category in (None, record.callout.config.category)
            and call.one("objectId") in (None, record.callout.event.values.get("MeterSession.Id"))
        ]
        shown = found[(page - 1) * size : page * size]
        content = _flag(call, "includeResponseContent", default=False)
        body: dict[str, Any] = {
            "calloutHistories": [_told(record, delivery, zone, content=content) for record in shown],
            "success": True,
        }
        if page * size < len(found):
            query = {name: values[0] for name, values in call.query.items()}
            fixed = {"startTime": f"{since.astimezone(zone):{_TIME}}", "endTime": f"{until.astimezone(zone):{_TIME}}"}
            following = urlencode({**query, **fixed, "pageSize": size, "page": page + 1}, safe=":")
            body["nextPage"] = f"{self.base_url}{PATH}?{following}"
        return Reply(body=body)

    def resend(self, call: Call, _: re.Match[str]) -> Reply:
        """Answer ``POST /notifications/callout-histories/resend``: 202, or 400 if nothing could be sent again.

        :raises Refusal: the body is no array of at most 1000 ids
        """
        try:
            ids = json.loads(call.body)
        except (ValueError, RecursionError):
            ids = None
        if not isinstance(ids, list) or not 1 <= len(ids) <= _MOST_RESENT:
            raise Refusal(f"The body must be an array of 1 to {_MOST_RESENT} ids.", INVALID_PARAMETER)
        known = {record.id: record.callout for record in self._callouts.history}
        failed = {str(i): {"code": "ObjectNotFound", "message": f"{i} does not exist."} for i in ids if i not in known}
        for each in ids:
            if each in known:
                self._callouts.resend(known[each])
        if failed:
            return Reply(400 if len(failed) == len(set(ids)) else 202, failed)
        return Reply(202, "")


def _told(record: Record, delivery: DeliverySettings, zone: ZoneInfo, *, content: bool) -> dict[str, Any]:
    callout, answer = record.callout, record.answer
    told = {
        "attemptedNum": record.attempt,
        "createTime": f"{datetime.fromtimestamp(record.at, zone):{_TIME}}",
        "eventCategory": callout.config.category,
        "eventContext": context(callout.config, callout.event, callout.body, delivery.history_context),
        "notification": callout.config.name,
        "requestMethod": callout.config.method,
        "requestUrl": callout.url,
        "responseCode": answer.code,
    }
    return {**told, "responseContent": answer.content or answer.error or ""} if content else told


def _number(call: Call, name: str, default: int) -> int:
    text = call.one(name) or str(default)
    if not text.isdigit():
        raise Refusal(f"{name} must be a number.", INVALID_PARAMETER)
    return int(text)


def _flag(call: Call, name: str, *, default: bool) -> bool:
    text = (call.one(name) or str(default)).lower()
    if text not in ("true", "false"):
        raise Refusal(f"{name} must be true or false.", INVALID_PARAMETER)
    return text == "true"


def _time(call: Call, name: str, zone: ZoneInfo) -> datetime | None:
    """Return an instant given as ``yyyy-MM-ddTHH:mm:ss``, in the tenant's zone by default."""
    if not (text := call.one(name)):
        return None
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise Refusal(f"{name} must have the format yyyy-MM-ddTHH:mm:ss.", INVALID_PARAMETER) from None
    return given if given.tzinfo else given.replace(tzinfo=zone)
