"""Summary, audit trail entries and export jobs of the simulator; no I/O.

Source: https://developer.zuora.com/v1-api-reference/api/meters/retrievemetersummarydata and the operations under
https://developer.zuora.com/v1-api-reference/api/audit-trail/ .
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from airflow_mediation_provider.protocol.status import RunType, SessionStatus
from airflow_mediation_provider.simulator.messages import Call, Reply
from airflow_mediation_provider.simulator.records import SINK, Kind, entries, rejected, visible
from airflow_mediation_provider.simulator.sessions import INVALID_PARAMETER, Refusal, Session, instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_mediation_provider.simulator.engine import Engine

URL_LIFE: Final = 3600
_SUMMARY_QUERY: Final = ("runType", "sessionIds", "operatorIds", "groupBy", "queryFromTime", "queryToTime")
_GROUPS: Final = ("errorCode", "processorId", "sessionId")


@dataclass(slots=True)
class ExportJob:
    """One export of the audit trail; the tenant's jobs are carried out one after the other."""

    request_id: str
    meter_id: str
    query: dict[str, Any]
    created_at: float
    done_at: float
    content: bytes | None = None
    count: int = 0

    @property
    def file_key(self) -> str:
        """Return the key with which the presigned URL is requested."""
        ending = ".csv.gz" if self.query["compression"] == "gzip" else ".csv"
        return f"{self.request_id}/audit_trail{ending}"


class AuditTrail:
    """Answers the calls about records; reads the engine and keeps the export jobs.

    :param engine: whose sessions they are
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.jobs: dict[str, ExportJob] = {}
        self._signatures: dict[str, tuple[str, float]] = {}
        self.base_url = ""

    def reset(self) -> None:
        """Delete all export jobs and URLs."""
        self.jobs.clear()
        self._signatures.clear()

    # ---- summary

    def summary(self, call: Call, match: re.Match[str]) -> Reply:
        """Answer ``POST /meters/{meterId}/summary``.

        :raises Refusal: unknown meter, or a wrong field
        """
        body = call.json()
        self._engine.meter(match["meter"])
        groups = _texts(body, "groupBy")
        if unknown := [group for group in groups if group not in _GROUPS]:
            raise Refusal(f"groupBy: {', '.join(unknown)} is unknown.", INVALID_PARAMETER)
        run_type = body.get("runType")
        if run_type is not None and run_type not in RunType.__members__:
            raise Refusal(f"runType {run_type!r} is unknown.", INVALID_PARAMETER)
        operators = set(_texts(body, "operatorIds"))
        totals: dict[tuple[str, ...], list[int]] = {}
        for session in self._sessions(match["meter"], body, run_type, _texts(body, "sessionIds")):
            output, errors = visible(session)
            for operator, code, put_out, failed in ((SINK, "", output, 0), *rejected(errors)):
                if (operators and operator.id not in operators) or not put_out + failed:
                    continue
                of = {"errorCode": code, "processorId": operator.id, "sessionId": session.session_id}
                row = totals.setdefault(tuple(of[group] for group in groups), [0, 0])
                row[0] += put_out
                row[1] += failed
        now = self._engine.clock.now()
        data = {
            "requestId": str(uuid.uuid4()),
            "requestTime": instant(now),
            "query": {**dict.fromkeys(_SUMMARY_QUERY), **body},
            "output": [
                {"dimensions": dict(zip(groups, key, strict=True)), "output": row[0], "totalErrorCount": row[1]}
                for key, row in sorted(totals.items())
            ],
        }
        return self._page(data)

    def _sessions(
        self, meter_id: str, times: Mapping[str, Any], run_type: str | None, session_ids: list[str]
    ) -> list[Session]:
        since, until = (_time(times.get(name), name) for name in ("queryFromTime", "queryToTime"))
        return [
            session
            for session in self._engine.sessions(meter_id)
            if (run_type is None or session.run_type == run_type)
            and (not session_ids or session.session_id in session_ids)
            and (until is None or session.started_at <= until)
            and (since is None or session.ended_at is None or session.ended_at >= since)
        ]

    # ---- entries

    def entries(self, call: Call, match: re.Match[str]) -> Reply:
        """Answer ``GET /meters/{meterId}/auditTrail/entries``, page by page.

        :raises Refusal: unknown meter, a parameter is missing or wrong, or the cursor is not one of ours
        """
        self._engine.meter(match["meter"])
        size, offset = _number(call, "pageSize", 30, 500), _offset(call.one("cursor"))
        session_ids = call.many("sessionId")
        found = self._found(
            match["meter"], _query(call) | {"sessionIds": session_ids, "operatorIds": call.many("operatorId")}
        )
        page = found[offset : offset + size]
        null = self._null()
        return Reply(
            body={
                "success": True,
                "data": [entry for _, entry in page],
                "previousPage": _cursor(max(0, offset - size)) if offset else null,
                "nextPage": _cursor(offset + size) if offset + size < len(found) else null,
            }
        )

    def _found(self, meter_id: str, query: dict[str, Any]) -> list[tuple[Session, dict[str, Any]]]:
        kind: Kind = query["exportType"]
        since, until = _time(query["queryFromTime"], "queryFromTime"), _time(query["queryToTime"], "queryToTime")
        now = self._engine.clock.now()
        limit = 10_000_000 if kind == "ERROR" else self._engine.config.sample_limit
        return [
            (session, entry)
            for session in self._sessions(meter_id, query, query["runType"], query["sessionIds"])
            if not query.get("statuses") or session.status in query["statuses"]
            for at, entry in entries(session, kind, limit, now)
            if (since is None or at >= since)
            and (until is None or at <= until)
            and (not query["operatorIds"] or entry["operatorId"] in query["operatorIds"])
        ]

    # ---- export

    def create_export(self, call: Call, match: re.Match[str]) -> Reply:
        """Answer ``POST /meters/{meterId}/auditTrail/export``: everything is in the query string.

        :raises Refusal: unknown meter, a parameter is missing or wrong, or a format that the simulator cannot write
        """
        self._engine.meter(match["meter"])
        query = _query(call) | {
            "sessionIds": call.many("sessionIds"),
            "operatorIds": call.many("operatorIds"),
            "statuses": call.many("runStatuses"),
            "format": call.one("format", "csv"),
            "compression": call.one("compression", "none"),
        }
        if unknown := [status for status in query["statuses"] if status not in set(SessionStatus) - {"STOPPING"}]:
            raise Refusal(f"runStatuses: {', '.join(unknown)} is unknown.", INVALID_PARAMETER)
        if query["format"] != "csv" or query["compression"] not in ("none", "gzip"):
            raise Refusal("The simulator writes format csv, compression none or gzip alone.", INVALID_PARAMETER)
        now = self._engine.clock.now()
        begins = max([now, *(job.done_at for job in self.jobs.values())])
        seconds = self._engine.config.export_seconds * self._engine.config.time_scale
        job = ExportJob(str(uuid.uuid4()), match["meter"], query, now, begins + seconds)
        self.jobs[job.request_id] = job
        self._engine.log.add("export", meter_id=job.meter_id, request_id=job.request_id, query=query)
        return self._page({"requestId": job.request_id})

    def list_exports(self, call: Call, match: re.Match[str]) -> Reply:
        """Answer ``GET /meters/{meterId}/auditTrail/export``: the meter's jobs, newest first.

        :raises Refusal: unknown meter, or a wrong parameter
        """
        self._engine.meter(match["meter"])
        page, size = _number(call, "page", 1, None), _number(call, "pageSize", 30, 100)
        kind, request_id, sessions = call.one("exportType"), call.one("requestId"), set(call.many("sessionIds"))
        jobs = [
            job
            for job in reversed(self.jobs.values())
            if job.meter_id == match["meter"]
            and kind in (None, job.query["exportType"])
            and request_id in (None, job.request_id)
            and (not sessions or sessions & set(job.query["sessionIds"]))
        ]
        shown = [self._job(job) for job in jobs[(page - 1) * size : page * size]]
        return self._page({"page": page, "pageSize": size, "jobs": shown})

    def _job(self, job: ExportJob) -> dict[str, Any]:
        done = self._engine.clock.now() >= job.done_at
        if done and job.content is None:
            self._write(job)
        return {
            "requestId": job.request_id,
            "meterId": int(job.meter_id),
            "query": {
                **{key: value for key, value in job.query.items() if key != "compression"},
                "statuses": job.query["statuses"] or None,
            },
            "status": "FINISHED" if done else "RUNNING",
            "count": job.count,
            "creationTime": _utc(job.created_at),
            "completionTime": _utc(job.done_at) if done else None,
            "fileList": [job.file_key] if done else [],
        }

    def _write(self, job: ExportJob) -> None:
        found = self._found(job.meter_id, job.query)
        text = io.StringIO()
        names = ["sessionId", "timestamp", "errorTime", "errorCode", "errorMessage", "payload", "eventId", "traceId"]
        writer = csv.DictWriter(text, [*names, "operatorType", "operatorName", "operatorId"], lineterminator="\n")
        writer.writeheader()
        for session, entry in found:
            writer.writerow({**entry, "sessionId": session.session_id, "payload": json.dumps(entry["payload"])})
        job.count = len(found)
        content = text.getvalue().encode()
        job.content = gzip.compress(content, mtime=0) if job.query["compression"] == "gzip" else content

    def presigned_url(self, call: Call, _: re.Match[str]) -> Reply:
        """Answer ``GET /meters/auditTrail/presignedUrl``.

        :raises Refusal: no such file
        """
        key = call.required("fileKey")
        if not any(job.file_key == key and job.content is not None for job in self.jobs.values()):
            raise Refusal(f"fileKey {key} does not exist.", INVALID_PARAMETER)
        signature = uuid.uuid4().hex
        self._signatures[signature] = (key, self._engine.clock.now() + URL_LIFE)
        query = urlencode({"X-Amz-Expires": URL_LIFE, "X-Amz-Signature": signature})
        return Reply(body={"success": True, "data": f"{self.base_url}/export-files/{quote(key)}?{query}"})

    def download(self, call: Call) -> Reply:
        """Answer the presigned URL: the file itself, without a token, while the signature is valid.

        :raises Refusal: 403 the signature is missing, wrong or too old
        """
        key, until = self._signatures.get(call.one("X-Amz-Signature") or "", ("", 0.0))
        if call.method != "GET" or f"/export-files/{key}" != call.path or self._engine.clock.now() >= until:
            raise Refusal("Access denied.", status=403)
        content = next(job.content for job in self.jobs.values() if job.file_key == key)
        kind = "application/gzip" if key.endswith(".gz") else "text/csv"
        return Reply(body=content, content_type=kind)

    def _null(self) -> str | None:
        null = self._engine.config.null_page
        return None if null == "documented" else null

    def _page(self, data: object) -> Reply:
        null = self._null()
        return Reply(body={"success": True, "data": data, "previousPage": null, "nextPage": null})


def _query(call: Call) -> dict[str, Any]:
    query = {name: call.required(name) for name in ("exportType", "runType", "queryFromTime", "queryToTime")}
    if query["exportType"] not in ("SAMPLE", "ERROR"):
        raise Refusal("exportType must be SAMPLE or ERROR.", INVALID_PARAMETER)
    if query["runType"] not in RunType.__members__:
        raise Refusal("runType must be NORMAL or DEBUG.", INVALID_PARAMETER)
    for name in ("queryFromTime", "queryToTime"):
        _time(query[name], name)
    return query


def _time(text: object, name: str) -> float | None:
    """Read ``YYYY-MM-DDTHH:MM:SS+HHMM``; a colon or a Z in the offset is refused, as in Zuora's newer pages."""
    if text is None:
        return None
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", str(text)):
            raise ValueError(text)
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        raise Refusal(f"{name} must be YYYY-MM-DDTHH:MM:SS+HHMM, got '{text}'.", INVALID_PARAMETER) from None


def _utc(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S}Z"


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    value = body.get(name) or []
    if not isinstance(value, list):
        raise Refusal(f"{name} must be a list.", INVALID_PARAMETER)
    return [str(item) for item in value]


def _number(call: Call, name: str, default: int, most: int | None) -> int:
    text = call.one(name) or str(default)
    if not text.isdecimal() or int(text) < 1 or (most is not None and int(text) > most):
        limit = f" from 1 to {most}" if most else " from 1"
        raise Refusal(f"{name} must be a number{limit}, got '{text}'.", INVALID_PARAMETER)
    return int(text)


def _cursor(offset: int) -> str:
    return base64.urlsafe_b64encode(f"offset:{offset}".encode()).decode()


def _offset(cursor: str | None) -> int:
    if not cursor:
        return 0
    try:
        word, _, number = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
        if word != "offset":
            raise ValueError(word)
        return int(number)
    except ValueError:
        raise Refusal("cursor is invalid.", INVALID_PARAMETER) from None
