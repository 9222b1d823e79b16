"""The documented API of Zuora Mediation on top of the engine: OAuth, run, debug, stop and runStatus; no I/O.

Source: the operations under https://developer.zuora.com/v1-api-reference/api/meters/ . What Zuora leaves open is a
setting of ``SimulatorConfig`` or ``MeterConfig``.
"""

from __future__ import annotations

import re
import string
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.protocol.status import CODE_BY_STATUS, RunType, SessionStatus
from airflow_mediation_provider.simulator import callout_history
from airflow_mediation_provider.simulator.audit import AuditTrail
from airflow_mediation_provider.simulator.callout_history import CalloutHistory
from airflow_mediation_provider.simulator.messages import Call, Reply
from airflow_mediation_provider.simulator.sessions import (
    ENTITY_MISSING,
    INVALID_PARAMETER,
    NO_PERMISSION,
    NOT_ENABLED,
    Refusal,
    Session,
    instant,
)

if TYPE_CHECKING:
    from airflow_mediation_provider.simulator.callouts import Callouts
    from airflow_mediation_provider.simulator.engine import Engine
    from airflow_mediation_provider.simulator.tokens import Tokens

REALMS: Final = "Basic realm=Zuora API, ZSession realm=Zuora API, Bearer realm=Zuora API"
SOURCE_TYPES: Final = {
    "LOCAL_FS": ("localFs", ("fileId",)),
    "S3": ("s3", ("paths", "fileFormat")),
    "SNOWFLAKE": ("snowflake", ()),
    "EVENT_STORE": ("eventStore", ("storeId",)),
    "STREAMING_API": (None, ()),  # named by one page only, without the name of its object
}
VIEW: Final = ("View Meters", "Run Meters", "Configure Meters and Events")
RUN: Final = ("Run Meters",)
STOP: Final = ("Run Meters", "Configure Meters and Events")
NOTIFICATIONS: Final = ("Events & Notifications View Access", "Events & Notifications Manage Access")
RESEND: Final = ("Events & Notifications Resend Access",)

Handler = Callable[[Call, "re.Match[str]"], Reply]


def meter_of(path: str) -> str | None:
    """Return the meter id that a path names."""
    found = re.match(r"/meters/(?:(?:run|debug|stop)/)?(\d+)(?:/|$)", path)
    return found[1] if found else None


class ZuoraApi:
    """Answers calls like Zuora."""

    def __init__(self, engine: Engine, tokens: Tokens, callouts: Callouts) -> None:
        self._engine = engine
        self._tokens = tokens
        self._window = (0.0, 0)
        self.audit = AuditTrail(engine)
        self.callout_history = CalloutHistory(engine, callouts)
        meter = r"/meters/(?P<meter>[^/]+)"
        version = r"(?P<meter>[^/]+)/(?P<version>[^/]+)"
        trail = f"{meter}/auditTrail"
        self._routes: list[tuple[str, re.Pattern[str], tuple[str, ...], Handler]] = [
            (method, re.compile(path + "$"), permission, handler)
            for method, path, permission, handler in (
                ("POST", f"/meters/run/{version}", RUN, self._run),
                ("POST", f"/meters/debug/{version}", RUN, self._debug),
                ("POST", f"/meters/stop/{version}", STOP, self._stop),
                ("GET", r"/meters/auditTrail/presignedUrl", VIEW, self.audit.presigned_url),
                ("GET", f"/meters/{version}/runStatus", VIEW, self._run_status),
                ("POST", f"{meter}/summary", VIEW, self.audit.summary),
                ("GET", f"{trail}/entries", VIEW, self.audit.entries),
                ("POST", f"{trail}/export", VIEW, self.audit.create_export),
                ("GET", f"{trail}/export", VIEW, self.audit.list_exports),
                ("GET", callout_history.PATH, NOTIFICATIONS, self.callout_history.read),
                ("POST", callout_history.RESEND, RESEND, self.callout_history.resend),
            )
        ]

    def answer(self, call: Call) -> Reply:
        """Carry out a call and return its reply, refusals included."""
        headers: dict[str, str] = {}
        try:
            if track := call.headers.get("zuora-track-id"):
                self._check_track_id(track)
                headers |= {"Zuora-Track-Id": track} if track.isascii() else {}
            if call.path.startswith("/meters/"):
                headers |= self._count_call()
            reply = self._dispatch(call)
        except Refusal as refusal:
            reply = self.error(refusal)
        reply.headers = {"Zuora-Request-Id": str(uuid.uuid4()), **headers, **reply.headers}
        return reply

    def error(self, refusal: Refusal) -> Reply:
        """Return the reply of a refusal, in the configured one of the documented shapes."""
        detail = {"code": refusal.code, "message": refusal.message}
        if refusal.code is None:
            del detail["code"]
        body: dict[str, Any] = {"success": False, "error": detail, "previousPage": None, "nextPage": None}
        shape = self._engine.config.error_shape
        if shape == "errors":
            body = {"success": False, "errors": [detail]}
        elif shape == "reasons":
            body = {
                "success": False,
                "processId": uuid.uuid4().hex,
                "requestId": str(uuid.uuid4()),
                "reasons": [detail],
            }
        elif shape == "message":
            body = {"message": refusal.message}
        headers = dict(refusal.headers)
        if refusal.status == 401:
            headers["WWW-Authenticate"] = REALMS
        return Reply(refusal.status, body, headers)

    def _dispatch(self, call: Call) -> Reply:
        if call.path == "/oauth/token" and call.method == "POST":
            return self._tokens.issue(call, self._engine.config)
        if call.path.startswith("/export-files/"):
            return self.audit.download(call)
        if self._tokens.number(call) is None:
            raise Refusal("Authentication error", status=401)
        for method, pattern, permission, handler in self._routes:
            if method == call.method and (match := pattern.match(call.path)):
                self._check_client(call, permission, stop=handler == self._stop)
                if "meter" in match.groupdict() and not match["meter"].isdigit():
                    raise Refusal(f"meterId must be a number, got '{match['meter']}'.", INVALID_PARAMETER)
                return handler(call, match)
        raise Refusal(f"No operation {call.method} {call.path}.", status=404)

    def _check_track_id(self, track: str) -> None:
        legal = len(track) <= 64 and track.isascii() and not set(track) & set(":;\"'")
        if self._engine.config.strict_track_id and not (legal and all(c in string.printable for c in track)):
            raise Refusal("Zuora-Track-Id must be at most 64 ASCII characters without : ; \" '", INVALID_PARAMETER)

    def _check_client(self, call: Call, permission: tuple[str, ...], *, stop: bool) -> None:
        config = self._engine.config
        mediation = call.path.startswith("/meters/")
        if mediation and not config.mediation_enabled:
            raise Refusal("Mediation is not enabled for the tenant.", NOT_ENABLED)
        if config.required_entity and call.headers.get("zuora-entity-ids") != config.required_entity:
            raise Refusal("Zuora entity id is missing.", ENTITY_MISSING)
        if not set(permission) & set(config.permissions):
            raise Refusal("The user has no permission for this operation.", NO_PERMISSION, config.permission_status)
        kind = call.headers.get("content-type", "").partition(";")[0].strip()
        if mediation and config.require_content_type and kind != "application/json" and not (stop and not kind):
            raise Refusal("Content-Type must be application/json.", INVALID_PARAMETER)

    def _count_call(self) -> dict[str, str]:
        config, now = self._engine.config, self._engine.clock.now()
        if config.rate_limit is None:
            return {}
        start, count = self._window
        if now >= start + config.rate_limit_window:
            start, count = now, 0
        self._window = (start, count + 1)
        limit, window = config.rate_limit, config.rate_limit_window
        headers = {
            "RateLimit-Limit": f"{limit}, {limit};w={window:g}",
            "RateLimit-Remaining": str(max(0, limit - count - 1)),
            "RateLimit-Reset": str(max(1, round(start + window - now))),
        }
        if count >= limit:
            raise Refusal("Rate limit exceeded.", status=429, headers=headers)
        return headers

    # ---- operations

    def _run(self, call: Call, match: re.Match[str]) -> Reply:
        body = call.json()
        key = body.get("uniqueKey")
        if key is not None and (not isinstance(key, str) or not key):
            raise Refusal("uniqueKey must be a string.", INVALID_PARAMETER)
        streaming = _check_sources(body)
        session = self._engine.start(match["meter"], match["version"], unique_key=key, streaming=streaming)
        return self._page(_run_data(session, "status", self.code(session.status)))

    def _debug(self, call: Call, match: re.Match[str]) -> Reply:
        if not call.body.strip():
            raise Refusal("The body is required.", INVALID_PARAMETER)
        _check_sources(call.json())
        session = self._engine.start(match["meter"], match["version"], RunType.DEBUG)
        data = _run_data(session, "runStatus", session.status)
        return self._page(data) if self._engine.config.debug_enveloped else Reply(body=data)

    def _stop(self, call: Call, match: re.Match[str]) -> Reply:
        force = (call.one("forceStop", "false") or "").lower()
        if force not in ("true", "false"):
            raise Refusal("forceStop must be true or false.", INVALID_PARAMETER)
        self._engine.stop(match["meter"], match["version"], force=force == "true")
        return Reply(body={"success": True})

    def _run_status(self, _: Call, match: re.Match[str]) -> Reply:
        status = self._engine.run_status(match["meter"], match["version"])
        code, name = self.code(status), f"STATUS_{status}" if status.isdigit() else status
        return Reply(body={"success": True, "data": {"runStatus": code, "runStatusDescription": name}})

    def code(self, status: str) -> int:
        """Return the integer code of a status; the name of an undocumented one is its code."""
        if status == SessionStatus.STOPPING:
            return self._engine.config.stopping_code
        return int(status) if status.isdigit() else CODE_BY_STATUS[SessionStatus(status)]

    def _page(self, data: object) -> Reply:
        null = self._engine.config.null_page
        null = "null" if null == "documented" else null
        return Reply(body={"success": True, "data": data, "previousPage": null, "nextPage": null})


def _run_data(session: Session, name: str, status: object) -> dict[str, Any]:
    return {
        "id": session.run_id,
        "sessionId": session.session_id,
        "jobId": session.job_id,
        "meterId": int(session.meter_id),
        "version": session.version,
        "revision": session.revision,
        "runType": 1 if session.run_type is RunType.NORMAL else 2,
        "runTypeDescription": str(session.run_type),
        "startTime": instant(session.started_at, int(session.run_id)),
        "endTime": None if session.ended_at is None else instant(session.ended_at),
        name: status,
        f"{name}Description": session.status,
        "canExportSummary": False,
        "hasLineageEnabled": False,
    }


def _check_sources(body: dict[str, Any]) -> bool | None:
    """Check the sources of one run; return ``True`` if they make it a streaming one, else ``None``."""
    streaming = None
    for name in ("runtimeSourceConfigs", "sourceOptions", "eventStoreSourceOptions"):
        items = body.get(name, [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise Refusal(f"{name} must be a list of objects.", INVALID_PARAMETER)
        if name == "eventStoreSourceOptions" and not all(item.get("processorId") for item in items):
            raise Refusal(f"{name}: processorId is required.", INVALID_PARAMETER)
    for item in body.get("runtimeSourceConfigs", []):
        if (kind := item.get("sourceType")) not in SOURCE_TYPES:
            raise Refusal(f"runtimeSourceConfigs: sourceType {kind!r} is unknown.", INVALID_PARAMETER)
        key, required = SOURCE_TYPES[kind]
        source = item.get(key, {}) if key else {}
        if key and (not isinstance(source, dict) or key not in item or any(field not in source for field in required)):
            raise Refusal(f"runtimeSourceConfigs: {key} with {', '.join(required)} is required.", INVALID_PARAMETER)
        if kind == "STREAMING_API" or source.get("incremental") is True:
            streaming = True
    return streaming
