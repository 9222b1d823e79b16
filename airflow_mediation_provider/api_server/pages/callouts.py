"""Callouts as they were received: the list, one of them with all that is kept of it, and what users do about them.

Callouts are customers' data: without the permission to read a connection, only its counts are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from airflow_mediation_provider.api_server.auth import Reader, ReaderDep, same_origin
from airflow_mediation_provider.api_server.connections import LookupFailedError, UnknownConnectionError
from airflow_mediation_provider.api_server.pages.rendering import PageRoute, Text, Urls, form, page
from airflow_mediation_provider.api_server.pages.sessions import SPANS, instant
from airflow_mediation_provider.journal.callout_list import (
    CalloutFilters,
    CalloutKind,
    connections_with_callouts,
    count_answers,
    find_callout,
    list_callouts,
)
from airflow_mediation_provider.journal.receipts import (
    KEPT,
    acknowledge_refused,
    acknowledge_unparsed,
    refusals,
)
from airflow_mediation_provider.journal.session_search import Keyset
from airflow_mediation_provider.journal.transaction import read
from airflow_mediation_provider.journal.writer import reparse
from airflow_mediation_provider.protocol.callouts.receipt import LONGEST_BODY, NO_CONNECTION
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from airflow_mediation_provider.journal.callout_list import AnswerCounts, CalloutDetail, CalloutListing
    from airflow_mediation_provider.journal.receipts import Refusals

router = APIRouter(route_class=PageRoute)

PAGE: Final = 50
UNACKNOWLEDGED: Final = "no"
ALL: Final = "all"
_LONGEST_ID: Final = 18
_MAY_NOT: Final = "This needs the permissions to create asset events and to read the connection."


@dataclass(frozen=True, slots=True, kw_only=True)
class CalloutSearch:
    """The search that an address contains.

    :param kind: one of ``CalloutKind``
    :param answer: the HTTP status that refused callouts were answered
    :param acknowledged: ``no``: only refused or unreadable callouts that no user has acknowledged
    :param session: the id of a session, with ``meter`` that of a meter's
    :param since: ISO 8601, in the zone ``tz`` if it has none; or one of ``SPANS``
    :param tz: the user's time zone
    """

    conn: str = ""
    kind: str = ""
    answer: str = ""
    acknowledged: str = ""
    session: str = ""
    meter: str = ""
    since: str = ""
    until: str = ""
    tz: str = ""

    def filters(self, conn_ids: list[str], now: datetime) -> CalloutFilters:
        """Return the filters.

        :param conn_ids: the connections that the user may read
        :raises HTTPException: a part is invalid, or fits no other part; the message names it
        """
        if self.kind not in ("", *CalloutKind):
            raise HTTPException(400, f"kind={self.kind} is not one of {', '.join(CalloutKind)}.")
        kind = CalloutKind(self.kind) if self.kind else None
        if self.answer and not (self.answer.isdecimal() and self.answer.isascii() and len(self.answer) == 3):
            raise HTTPException(400, f"answer={self.answer} is not an HTTP status.")
        if self.answer and kind is not CalloutKind.REFUSED:
            raise HTTPException(400, "answer needs kind=refused.")
        if self.acknowledged not in ("", UNACKNOWLEDGED):
            raise HTTPException(400, f"acknowledged={self.acknowledged} is not {UNACKNOWLEDGED}.")
        if self.acknowledged and kind not in (CalloutKind.REFUSED, CalloutKind.UNREADABLE):
            raise HTTPException(400, "acknowledged needs kind=refused or kind=unreadable.")
        session, meter = self.session.strip(), self.meter.strip()
        if session and kind:
            raise HTTPException(400, "session and kind cannot be combined: a session has only callouts that were read.")
        if meter and not session:
            raise HTTPException(400, "meter needs a session.")
        conn = self.conn.strip()
        return CalloutFilters(
            conn_ids=[each for each in conn_ids if conn in ("", each)],
            kind=kind,
            answer=int(self.answer) if self.answer else None,
            open_only=bool(self.acknowledged),
            session_id=session or None,
            meter_id=meter or None,
            since=instant("since", self.since, self.tz, now),
            until=instant("until", self.until, self.tz, now),
        )

    def parameters(self) -> dict[str, str]:
        """Return the parameters of the same address."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def filtered(self) -> bool:
        """Whether it leaves out any callout."""
        return any(value for name, value in self.parameters().items() if name != "tz")


def _search(
    conn: Text = "",
    kind: Text = "",
    answer: Text = "",
    acknowledged: Text = "",
    session: Text = "",
    meter: Text = "",
    since: Text = "",
    until: Text = "",
    tz: Text = "",
) -> CalloutSearch:
    return CalloutSearch(**locals())


SearchDep = Annotated[CalloutSearch, Depends(_search)]


@router.get("/callouts")
def callouts(request: Request, reader: ReaderDep, search: SearchDep, before: Text = "", after: Text = "") -> Response:
    """Show the list."""
    try:
        places = {"before": Keyset.parse(before) if before else None, "after": Keyset.parse(after) if after else None}
    except ValueError as error:
        raise HTTPException(400, f"{error}: go back to the newest callouts.") from None
    return _list(request, reader, search, places)


@router.get("/unread")
def unread(request: Request) -> Response:
    """Lead an address of an earlier version to the list."""
    return RedirectResponse(Urls(request).page("/callouts", kind=CalloutKind.UNREADABLE), status_code=301)


@router.get("/callout")
def callout(request: Request, reader: ReaderDep, receipt: Text = "", row: Text = "") -> Response:
    """Show one callout, by its receipt or else by the row that it added."""
    return _shown(request, reader, receipt, row)


@router.post("/callout/reparse", dependencies=[same_origin])
@router.post("/unread/reparse", dependencies=[same_origin])
def callout_reparse(
    request: Request, reader: ReaderDep, form: Annotated[dict[str, str], form("conn", number=ALL, back="")]
) -> Response:
    """Parse unparsed callouts of a connection again; those that succeed trigger Dags as a new callout does."""
    conn, number = form["conn"], form["number"]
    row_id = None if number == ALL else _number("number", number)
    if not _may_act(reader, conn):
        raise HTTPException(403, _MAY_NOT)
    _back(form)
    reader.log_action("reparse_callouts", conn_id=conn, number=number)
    try:
        connection = request.app.state.connections.get_in_thread(conn)
        outcomes = list(reparse(connection.callouts, team=connection.team, row_id=row_id))
    except UnknownConnectionError:
        return _after(request, reader, form, f"There is no connection {conn} of type mediation.", failed=True)
    except (LookupFailedError, MisconfigurationError) as error:
        return _after(request, reader, form, f"The connection {conn} cannot be used: {error}", failed=True)
    parsed = sum(each.entry is not None for each in outcomes)
    notice = f"{parsed} read; {len(outcomes) - parsed} still unreadable."
    return _after(request, reader, form, notice, failed=parsed == 0)


@router.post("/callout/acknowledge", dependencies=[same_origin])
def callout_acknowledge(
    request: Request,
    reader: ReaderDep,
    form: Annotated[dict[str, str], form("kind", conn=NO_CONNECTION, number=ALL, until="", back="")],
) -> Response:
    """Note that the user has seen unreadable or refused callouts: one of them, or all of a connection.

    All are those that the page had: what was received since, the user has not seen.
    """
    conn, kind, number = form["conn"], form["kind"], form["number"]
    if kind not in (CalloutKind.REFUSED, CalloutKind.UNREADABLE):
        raise HTTPException(400, f"kind={kind} is neither refused nor unreadable.")
    one = None if number == ALL else _number("number", number)
    now = datetime.now(UTC)
    until = instant("until", form["until"], "", now)
    if not _may_act(reader, conn):
        raise HTTPException(403, _MAY_NOT)
    _back(form)
    reader.log_action("acknowledge_callouts", conn_id=conn, kind=kind, number=number)
    if kind == CalloutKind.REFUSED:
        count = acknowledge_refused(conn, reader.name, now, receipt_id=one, until=until)
    else:
        count = acknowledge_unparsed(conn, reader.name, now, row_id=one, until=until)
    return _after(request, reader, form, f"{count} acknowledged.", failed=count == 0)


def _may_act(reader: Reader, conn_id: str) -> bool:
    """Whether the user may act on callouts: nothing is kept of those that name no connection."""
    return reader.makes_events() and (conn_id == NO_CONNECTION or reader.reads_connection(conn_id))


def _after(request: Request, reader: Reader, form: dict[str, str], notice: str, *, failed: bool) -> Response:
    """Show the page of the one callout, or the list from which the user acted."""
    number = form["number"]
    if number != ALL and not form["back"]:
        refused = form.get("kind") == CalloutKind.REFUSED
        receipt, row = (number, "") if refused else ("", number)
        return _shown(request, reader, receipt, row, notice=notice, failed=failed)
    return _list(request, reader, _back(form), {}, notice=notice, failed=failed)


def _back(form: dict[str, str]) -> CalloutSearch:
    """Return the search from which the user acted.

    :raises HTTPException: it is invalid: to be called before the action
    """
    given = dict(parse_qsl(form["back"]))
    if any("\0" in each for each in given.values()):
        raise HTTPException(400, "Missing or invalid parameters: back.")
    search = CalloutSearch(**{name: given[name] for name in CalloutSearch.__slots__ if name in given})
    search.filters([], datetime.now(UTC))
    return search


def _list(
    request: Request,
    reader: Reader,
    search: CalloutSearch,
    places: Mapping[str, Keyset | None],
    *,
    notice: str = "",
    failed: bool = False,
) -> Response:
    now = datetime.now(UTC)
    known: list[str] = read(connections_with_callouts)
    readable = [each for each in known if reader.reads_connection(each)]
    filters = search.filters(readable, now)

    def work(session: Session) -> tuple[CalloutListing, list[AnswerCounts], list[Refusals]]:
        listing = list_callouts(session, filters, limit=PAGE, **places)
        return listing, count_answers(session, now - KEPT), refusals(session, now)

    listing, counts, refused = read(work)
    # Up to when the page has all: by its list, and where not every refused one is listed, by its counts.
    until = {each.conn_id: each.last_at for each in sorted(refused, key=lambda each: each.last_at)}
    for each in listing.callouts[:1]:
        at, counted = each.place.begun_at, until.get(each.conn_id, each.place.begun_at)
        until[each.conn_id] = at if filters.kind is CalloutKind.UNREADABLE else max(at, counted)
    return page(
        request,
        "callouts.html",
        search=search,
        filters=filters,
        callouts=listing.callouts,
        newer=listing.newer,
        older=listing.older,
        paged=any(places.values()),
        connections=known,
        readable=readable,
        # With a single readable connection, too, the buttons for all of its callouts are shown.
        conn=filters.conn_ids[0] if len(filters.conn_ids) == 1 else "",
        open_refused={each.conn_id for each in refused},
        until=until,
        counts=counts,
        kept=KEPT.days,
        kinds=list(CalloutKind),
        spans=SPANS,
        may_act=reader.makes_events(),
        notice=notice,
        failed=failed,
    )


def _shown(
    request: Request, reader: Reader, receipt: str, row: str, *, notice: str = "", failed: bool = False
) -> Response:
    """Show one callout.

    :raises HTTPException: it is not there, or the user may not see it
    """
    if bool(receipt) == bool(row):
        raise HTTPException(400, "Give either receipt or row.")
    wanted: dict[str, Any] = {"receipt_id": _number("receipt", receipt)} if receipt else {"row_id": _number("row", row)}
    detail: CalloutDetail | None = read(lambda session: find_callout(session, **wanted))
    if detail is None:
        raise HTTPException(404, "This callout is not kept any more, or it was never received.")
    if not reader.reads_connection(detail.callout.conn_id):
        raise HTTPException(403, "Callouts are customers' data: you may not read their connection.")
    return page(
        request,
        "callout.html",
        longest=LONGEST_BODY,
        detail=detail,
        callout=detail.callout,
        may_act=reader.makes_events(),
        notice=notice,
        failed=failed,
    )


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_ID):
        raise HTTPException(400, f"{name}={text} is not a number.")
    return int(text)
