"""The REST calls for the records of a session, as data: counts, audit-trail entries, exports. Sends nothing itself.

``audit_trail_entries`` makes a call for each page: it yields the call, receives the page, and ends after the last one.

Source: https://developer.zuora.com/v1-api-reference/api/audit-trail/
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_mediation_provider.protocol.ids import id_of
from airflow_mediation_provider.protocol.status import run_type_of
from airflow_mediation_provider.protocol.zuora.errors import PermanentError
from airflow_mediation_provider.protocol.zuora.replies import (
    Json,
    Page,
    check_page_number,
    envelope,
    objects,
    read_page,
    read_request_id,
    read_url,
)
from airflow_mediation_provider.protocol.zuora.requests import (
    Call,
    format_time,
    given,
    ids,
    one_of,
    path_part,
    query_of,
    texts,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from datetime import datetime

    from airflow_mediation_provider.protocol.status import RunType

# The times of records, and Zuora's clock, may differ from the session's times; other sessions are excluded by id.
_MARGIN = timedelta(hours=1)

SUMMARY_GROUPS = ("sessionId", "processorId", "errorCode")
EXPORT_TYPES = ("SAMPLE", "ERROR")
EXPORT_FORMATS = ("csv", "parquet", "avro")
EXPORT_COMPRESSIONS = ("none", "gzip", "lz4", "zstd")


def meter_summary(
    meter_id: str | int,
    *,
    run_type: RunType | str,
    query_from: datetime | str,
    query_to: datetime | str,
    session_ids: Iterable[str] = (),
    operator_ids: Iterable[str] = (),
    group_by: Iterable[str] = ("sessionId",),
) -> Call[Json]:
    """Count output and error records of sessions; it only reads, although it is a POST.

    :param run_type: NORMAL or DEBUG
    :param query_from: start of the time window, with its zone
    :param query_to: end of the time window, with its zone
    :param group_by: dimensions: ``sessionId``, ``processorId``, ``errorCode``
    :return: ``{"requestId": ..., "query": ..., "output": [{"dimensions": ..., "output": n, "totalErrorCount": n}]}``

    https://developer.zuora.com/v1-api-reference/api/meters/retrievemetersummarydata
    """
    meter = id_of("meter_id", meter_id)
    return Call(
        what=f"summary of meter {meter}",
        method="POST",
        path=f"/meters/{path_part('meter_id', meter)}/summary",
        body=given(
            runType=str(run_type_of(run_type)),
            sessionIds=ids("session_ids", session_ids),
            operatorIds=texts("operator_ids", operator_ids),
            groupBy=texts("group_by", group_by),
            queryFromTime=format_time("query_from", query_from),
            queryToTime=format_time("query_to", query_to),
        ),
        read=envelope,
    )


class ErrorGroup(NamedTuple):
    """Error records with one code.

    :param code: Zuora's code; empty if the records have none
    :param messages: their messages, each once
    :param records: the records
    """

    code: str
    messages: list[str]
    records: list[Mapping[str, Any]]


def errors_by_code(records: Iterable[Mapping[str, Any]]) -> list[ErrorGroup]:
    """Return error records by their code, the most frequent one first."""
    by_code: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_code.setdefault(str(record.get("errorCode") or ""), []).append(record)
    groups = (
        ErrorGroup(code, list(dict.fromkeys(str(each["errorMessage"]) for each in of if each.get("errorMessage"))), of)
        for code, of in by_code.items()
    )
    return sorted(groups, key=lambda group: -len(group.records))


def counts_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of a summary: ``[{"dimensions": ..., "output": n, "errors": n}]``."""
    return [
        {
            "dimensions": row.get("dimensions") or {},
            "output": int(row.get("output") or 0),
            "errors": int(row.get("totalErrorCount") or 0),
        }
        for row in objects(summary.get("output"))
    ]


def span_of_session(begun: datetime | None, ended: datetime | None, *, now: datetime) -> tuple[datetime, datetime]:
    """Return the time window of a session's records.

    :param begun: its start, where it is known, else when its first report was received, which may be after its end
    :param ended: its end, where it is known
    :param now: the time now
    """
    end = ended or now
    return min(begun or end, end) - _MARGIN, end + _MARGIN


def audit_trail_entries(
    meter_id: str | int,
    *,
    export_type: str,
    run_type: RunType | str,
    query_from: datetime | str,
    query_to: datetime | str,
    session_id: str | None = None,
    operator_id: str | None = None,
    page_size: int = 30,
) -> Generator[Call[Page], Page, None]:
    """Yield audit-trail entries; each page is requested when it is needed.

    The entries contain customers' usage: do not log them.

    :param export_type: ``SAMPLE`` (records that passed) or ``ERROR``
    :param page_size: 1 to 500
    :raises PermanentError: a cursor was received twice, or there are more than 10,000 pages: the paging would never end

    https://developer.zuora.com/v1-api-reference/api/audit-trail/getaudittrailentriesformeter
    """
    meter = id_of("meter_id", meter_id)
    if not 1 <= page_size <= 500:
        raise ValueError(f"page_size must be from 1 to 500, not {page_size}")
    query = query_of(
        exportType=one_of("export_type", export_type, EXPORT_TYPES),
        runType=str(run_type_of(run_type)),
        queryFromTime=format_time("query_from", query_from),
        queryToTime=format_time("query_to", query_to),
        sessionId=None if session_id is None else id_of("session_id", session_id),
        operatorId=operator_id,
        pageSize=str(page_size),
    )
    return _pages(f"audit trail of meter {meter}", f"/meters/{path_part('meter_id', meter)}/auditTrail/entries", query)


def _pages(what: str, path: str, query: tuple[tuple[str, str], ...]) -> Generator[Call[Page], Page, None]:
    cursor: str | None = None
    seen: set[str] = set()
    while True:
        at = (("cursor", cursor),) if cursor else ()
        page = yield Call(what=what, method="GET", path=path, query=query + at, read=read_page)
        cursor = page.next_cursor
        if cursor is None:
            return
        if cursor in seen:
            raise PermanentError(f"The {what} names the same next page twice, so it would never end: stopped there.")
        seen.add(cursor)
        check_page_number(what, len(seen) + 1)


def create_export_job(
    meter_id: str | int,
    *,
    export_type: str,
    run_type: RunType | str,
    query_from: datetime | str,
    query_to: datetime | str,
    session_ids: Iterable[str] = (),
    operator_ids: Iterable[str] = (),
    run_statuses: Iterable[str] = (),
    file_format: str = "csv",
    compression: str = "none",
) -> Call[str]:
    """Start an export of audit-trail entries to files; Zuora processes one per tenant at a time. Never sent twice.

    :param run_statuses: only sessions that ended in these statuses, by Zuora's names
    :param file_format: csv, parquet or avro
    :param compression: none, gzip, lz4 or zstd
    :return: the request id; :func:`list_export_jobs` finds the job by it

    https://developer.zuora.com/v1-api-reference/api/audit-trail/createaudittrailexportjob
    """
    meter = id_of("meter_id", meter_id)
    file_format = one_of("file_format", file_format, EXPORT_FORMATS)
    compression = one_of("compression", compression, EXPORT_COMPRESSIONS)
    return Call(
        what=f"audit trail export of meter {meter}",
        method="POST",
        path=f"/meters/{path_part('meter_id', meter)}/auditTrail/export",
        query=query_of(
            exportType=one_of("export_type", export_type, EXPORT_TYPES),
            runType=str(run_type_of(run_type)),
            queryFromTime=format_time("query_from", query_from),
            queryToTime=format_time("query_to", query_to),
            sessionIds=ids("session_ids", session_ids),
            operatorIds=texts("operator_ids", operator_ids),
            runStatuses=texts("run_statuses", run_statuses),
            # Both are newer than some tenants' documentation, so their defaults are not sent.
            format=None if file_format == "csv" else file_format,
            compression=None if compression == "none" else compression,
        ),
        read=read_request_id,
        repeatable=False,
        changes=True,
    )


def list_export_jobs(
    meter_id: str | int,
    *,
    export_type: str | None = None,
    session_ids: Iterable[str] = (),
    request_id: str | None = None,
    page: int = 1,
    page_size: int = 30,
) -> Call[list[Json]]:
    """List the export jobs of a meter, one page of them.

    :param page: from 1
    :param page_size: 1 to 100
    :return: jobs with ``requestId``, ``status``, ``count``, ``fileList`` and more

    https://developer.zuora.com/v1-api-reference/api/audit-trail/getaudittrailexportjobs
    """
    meter = id_of("meter_id", meter_id)
    if page < 1:
        raise ValueError(f"page must be at least 1, not {page}")
    if not 1 <= page_size <= 100:
        raise ValueError(f"page_size must be from 1 to 100, not {page_size}")
    return Call(
        what=f"export jobs of meter {meter}",
        method="GET",
        path=f"/meters/{path_part('meter_id', meter)}/auditTrail/export",
        query=query_of(
            exportType=None if export_type is None else one_of("export_type", export_type, EXPORT_TYPES),
            sessionIds=ids("session_ids", session_ids),
            requestId=request_id,
            page=str(page),
            pageSize=str(page_size),
        ),
        read=lambda reply: objects(envelope(reply).get("jobs")),
    )


def export_download_url(file_key: str) -> Call[str]:
    """Request the address of one file of an export. The address is a secret: it is enough to read the file.

    :param file_key: one entry of a job's ``fileList``

    https://developer.zuora.com/v1-api-reference/api/audit-trail/getpresignedurlformeterexport
    """
    if not file_key:
        raise ValueError("file_key must not be empty")
    return Call(
        what="download address of an export file",
        method="GET",
        path="/meters/auditTrail/presignedUrl",
        query=(("fileKey", file_key),),
        read=read_url,
    )
