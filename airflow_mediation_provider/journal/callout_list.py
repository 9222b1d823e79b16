"""Callouts as the pages show them: the list, newest first, filtered, with keyset pagination; counts; and one of them.

A list is read from receipts, which have the answers; that of unparsed callouts and that of a session from the journal's
rows, which are kept for longer than receipts. Each connection is read by an index of its own, as a user may be allowed
to read only some of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, case, func, or_, select, union

from airflow_mediation_provider.journal.queries import distinct_values, of_session_ids
from airflow_mediation_provider.journal.session_list import is_of_kind, known_connections
from airflow_mediation_provider.journal.session_search import Keyset
from airflow_mediation_provider.journal.tables import AnswersRow, ListedRow, ReceiptRow, TransitionRow
from airflow_mediation_provider.protocol.callouts.receipt import ACCEPTED, NO_CONNECTION, Proof, Receipt
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Row
    from sqlalchemy.orm import Session

_ATTEMPTS: Final = 50
"""Receipts with one notification id that are shown beside a callout."""
_LARGE: Final = ("headers", "query", "body")
# A list shows none of the large fields.
_LISTED_NAMES: Final = tuple(each.name for each in fields(Receipt) if each.name not in _LARGE)
_RECEIPT_COLUMNS: Final = tuple(
    getattr(ReceiptRow, name) for name in ("id", "accepted", "acknowledged_at", "acknowledged_by", *_LISTED_NAMES)
)


class CalloutKind(StrEnum):
    """What became of a callout."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREADABLE = "unreadable"
    DUPLICATE = "duplicate"


class Acknowledged(NamedTuple):
    """When a user acknowledged a callout, and who."""

    at: datetime
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReceipt:
    """A receipt as it is stored.

    :param id: its number
    :param receipt: the receipt; in a list without the large fields
    :param attempt: which callout with its notification id it is, of those with a receipt; 1 if it has no such id
    """

    id: int
    receipt: Receipt
    attempt: int
    acknowledged: Acknowledged | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReport:
    """What was read from a callout: its row in the journal.

    :param error: why it could not be parsed; ``None`` if it was
    """

    id: int
    conn_id: str
    kind: str
    source: str
    notification_id: str | None
    meter_id: str | None
    session_id: str | None
    run_type: str | None
    status: str | None
    previous_status: str | None
    started_at: datetime | None
    ended_at: datetime | None
    observed_at: datetime
    created_at: datetime
    error: str | None
    acknowledged: Acknowledged | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Callout:
    """One callout: its receipt, if it has one, and what was read from it.

    :param report: of a repeated callout the row that the first one added; ``None``: none was added, or it was pruned
    :param place: its position in the list that it was read from
    """

    conn_id: str
    received_at: datetime
    place: Keyset
    receipt: StoredReceipt | None = None
    report: StoredReport | None = None

    @property
    def kind(self) -> CalloutKind:
        """What became of it."""
        if self.receipt is not None and not self.receipt.receipt.accepted:
            return CalloutKind.REFUSED
        if self.receipt is not None and self.receipt.receipt.transition_id is None:
            return CalloutKind.DUPLICATE
        unparsed = self.report is not None and self.report.kind == EntryKind.UNPARSED
        return CalloutKind.UNREADABLE if unparsed else CalloutKind.ACCEPTED

    @property
    def acknowledged(self) -> Acknowledged | None:
        """Who acknowledged it, if that was needed and a user did."""
        row = {CalloutKind.REFUSED: self.receipt, CalloutKind.UNREADABLE: self.report}.get(self.kind)
        return row.acknowledged if row else None

    @property
    def open(self) -> bool:
        """Whether it is a problem that no user has acknowledged."""
        return self.kind in (CalloutKind.REFUSED, CalloutKind.UNREADABLE) and self.acknowledged is None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalloutFilters:
    """Which callouts to list; ``None`` does not filter.

    :param conn_ids: their connections
    :param answer: the HTTP status that they were answered; only with refused ones
    :param open_only: only what no user has acknowledged; only with refused and unreadable ones
    :param session_id: those of a session; not together with a kind
    :param meter_id: of which meter the session is, where several have its id
    :param since: those that were received at or after this time
    :param until: and before this time
    """

    conn_ids: Sequence[str]
    kind: CalloutKind | None = None
    answer: int | None = None
    open_only: bool = False
    session_id: str | None = None
    meter_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class CalloutListing(NamedTuple):
    """One page of the list.

    :param newer: the position from which newer ones are found, ``None`` if there are none
    :param older: the position from which older ones are found, ``None`` if there are none
    """

    callouts: list[Callout]
    newer: Keyset | None
    older: Keyset | None


def list_callouts(
    session: Session,
    filters: CalloutFilters,
    *,
    limit: int,
    before: Keyset | None = None,
    after: Keyset | None = None,
) -> CalloutListing:
    """Return the newest callouts, or those next to a position.

    :param limit: how many at most
    :param before: those right after this position in the list: older ones
    :param after: those right before it: newer ones
    """
    by_report = filters.session_id is not None or filters.kind is CalloutKind.UNREADABLE
    one: Callable[..., list[Callout]] = _by_reports if by_report else _by_receipts
    back = after is None
    of_each = (one(session, filters, conn_id, before or after, limit + 1, back=back) for conn_id in filters.conn_ids)
    found = sorted(chain.from_iterable(of_each), key=lambda each: each.place, reverse=back)
    onward = found[limit - 1].place if len(found) > limit else None
    found = found[:limit]
    if after is not None:
        return CalloutListing(found[::-1], newer=onward, older=found[0].place if found else after)
    return CalloutListing(found, newer=before and (found[0].place if found else before), older=onward)


def _by_receipts(
    session: Session, filters: CalloutFilters, conn_id: str, place: Keyset | None, limit: int, *, back: bool
) -> list[Callout]:
    row = ReceiptRow
    which: list[ColumnElement[bool]] = [row.conn_id == conn_id]
    match filters.kind:
        case CalloutKind.ACCEPTED:
            which.append(row.accepted.is_(True))
        case CalloutKind.REFUSED:
            which.append(row.accepted.is_(False))
        case CalloutKind.DUPLICATE:
            # By the answer, which has no index: few of those without a row are refused, and many are accepted.
            which += [row.transition_id.is_(None), row.status == ACCEPTED]
    if filters.answer is not None:
        which.append(row.status == filters.answer)
    if filters.open_only:
        which.append(row.acknowledged_at.is_(None))
    which += _within(row.received_at, row.id, filters, place, back=back)
    query = select(*_RECEIPT_COLUMNS).where(*which).order_by(*_order(row.received_at, row.id, back=back))
    found = session.execute(query.limit(limit)).all()
    return _with_reports(session, conn_id, found)


def _by_reports(
    session: Session, filters: CalloutFilters, conn_id: str, place: Keyset | None, limit: int, *, back: bool
) -> list[Callout]:
    row = TransitionRow
    query = select(*_REPORT_COLUMNS).where(row.conn_id == conn_id)
    if filters.session_id is not None:
        of_id = select(ListedRow.meter_id).where(of_session_ids(conn_id, [filters.session_id]))
        meters = [filters.meter_id] if filters.meter_id is not None else session.scalars(of_id).all()
        query = query.where(row.meter_id.in_(meters), row.session_id == filters.session_id, _IS_CALLOUT)
    else:
        query = query.where(row.kind == EntryKind.UNPARSED)
    if filters.open_only:
        query = query.where(row.acknowledged_at.is_(None))
    query = query.where(*_within(row.created_at, row.id, filters, place, back=back))
    found = session.execute(query.order_by(*_order(row.created_at, row.id, back=back)).limit(limit)).all()
    return _with_receipts(session, conn_id, [_report(each) for each in found])


def _order(at: Any, number: Any, *, back: bool) -> tuple[Any, Any]:
    return (at.desc(), number.desc()) if back else (at, number)


def _within(
    at: Any, number: Any, filters: CalloutFilters, place: Keyset | None, *, back: bool
) -> list[ColumnElement[bool]]:
    which: list[ColumnElement[bool]] = []
    # The first condition is the one that an index can use.
    if place is not None and back:
        which += [at <= place.begun_at, or_(at < place.begun_at, number < place.id)]
    elif place is not None:
        which += [at >= place.begun_at, or_(at > place.begun_at, number > place.id)]
    if filters.since is not None:
        which.append(at >= filters.since)
    if filters.until is not None:
        which.append(at < filters.until)
    return which


# What could not be parsed is shown, also if a task reported it.
_IS_CALLOUT: Final = or_(TransitionRow.source.in_((Source.CALLOUT, Source.HISTORY)), is_of_kind(EntryKind.UNPARSED))
_REPORT_NAMES: Final = tuple(each.name for each in fields(StoredReport) if each.name not in ("error", "acknowledged"))
_REPORT_COLUMNS: Final = (
    *(getattr(TransitionRow, name) for name in _REPORT_NAMES),
    TransitionRow.acknowledged_at,
    TransitionRow.acknowledged_by,
    # Without the rest of a body, which may have 256 KiB.
    case((TransitionRow.kind == EntryKind.UNPARSED, TransitionRow.body["error"].as_string())).label("error"),
)


def _report(row: Row[Any]) -> StoredReport:
    values = {name: getattr(row, name) for name in (*_REPORT_NAMES, "error")}
    return StoredReport(**values, acknowledged=_acknowledged(row))


def _receipt(row: Any, names: Iterable[str], attempts: dict[int, int]) -> StoredReceipt:
    values = {name: getattr(row, name) for name in names}
    receipt = Receipt(**{**values, "proof": Proof(row.proof)})
    return StoredReceipt(id=row.id, receipt=receipt, attempt=attempts.get(row.id, 1), acknowledged=_acknowledged(row))


def _acknowledged(row: Any) -> Acknowledged | None:
    return row.acknowledged_at and Acknowledged(row.acknowledged_at, row.acknowledged_by or "")


def _with_reports(session: Session, conn_id: str, found: Sequence[Row[Any]]) -> list[Callout]:
    """Return callouts by their receipts, with the rows that they, or the first of their attempts, added."""
    attempts = _attempts(session, conn_id, {each.notification_id for each in found})
    ids = [each.transition_id for each in found if each.transition_id is not None]
    repeated = {each.notification_id for each in found if each.accepted and each.transition_id is None}
    row = TransitionRow
    by_id = {each.id: each for each in _reports(session, row.id.in_(ids))} if ids else {}
    same_id = and_(row.conn_id == conn_id, row.notification_id.in_(repeated - {None}))
    by_notification = {each.notification_id: each for each in _reports(session, same_id)} if repeated - {None} else {}

    def added(each: Row[Any]) -> StoredReport | None:
        if not each.accepted:
            return None
        return by_id.get(each.transition_id) or by_notification.get(each.notification_id)

    return [
        Callout(
            conn_id=conn_id,
            received_at=each.received_at,
            place=Keyset(each.received_at, each.id),
            receipt=_receipt(each, _LISTED_NAMES, attempts),
            report=added(each),
        )
        for each in found
    ]


def _reports(session: Session, which: ColumnElement[bool]) -> list[StoredReport]:
    return [_report(each) for each in session.execute(select(*_REPORT_COLUMNS).where(which))]


def _with_receipts(session: Session, conn_id: str, reports: Sequence[StoredReport]) -> list[Callout]:
    """Return callouts by the rows that they added, with the receipts of those that added them."""
    row = ReceiptRow
    query = select(*_RECEIPT_COLUMNS).where(
        row.conn_id == conn_id, row.transition_id.in_([each.id for each in reports])
    )
    found = session.execute(query).all() if reports else []
    attempts = _attempts(session, conn_id, {each.notification_id for each in found})
    by_row = {each.transition_id: _receipt(each, _LISTED_NAMES, attempts) for each in found}
    return [
        Callout(
            conn_id=conn_id,
            received_at=each.observed_at,
            place=Keyset(each.created_at, each.id),
            receipt=by_row.get(each.id),
            report=each,
        )
        for each in reports
    ]


def _attempts(session: Session, conn_id: str, notification_ids: set[str | None]) -> dict[int, int]:
    """Return the number of each attempt, by the ids of the receipts: Zuora numbers them only in its own history."""
    row = ReceiptRow
    if not notification_ids - {None}:
        return {}
    number = func.row_number().over(partition_by=row.notification_id, order_by=(row.received_at, row.id))
    counted = select(row.id, number).where(row.conn_id == conn_id, row.notification_id.in_(notification_ids - {None}))
    return {id_: int(attempt) for id_, attempt in session.execute(counted)}


# ---- one callout


class Attempt(NamedTuple):
    """Another callout with the same notification id."""

    id: int
    received_at: datetime
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalloutDetail:
    """One callout with all that is kept of it.

    :param body: of its row in the journal; ``None`` if it has none
    :param attempts: all with its notification id that have a receipt, the first one first
    """

    callout: Callout
    body: dict[str, Any] | None
    attempts: list[Attempt] = field(default_factory=list)


def find_callout(session: Session, *, receipt_id: int | None = None, row_id: int | None = None) -> CalloutDetail | None:
    """Return one callout, ``None`` if it is not there.

    :param receipt_id: by its receipt
    :param row_id: else by the row that it added
    """
    row = ReceiptRow
    if receipt_id is not None:
        found = session.scalar(select(row).where(row.id == receipt_id))
        if found is None:
            return None
        [callout] = _with_reports(session, found.conn_id, [found])  # type: ignore[list-item]
    else:
        reports = _reports(session, and_(TransitionRow.id == row_id, _IS_CALLOUT))
        if not reports:
            return None
        [callout] = _with_receipts(session, reports[0].conn_id, reports)
        found = session.get(row, callout.receipt.id) if callout.receipt else None
    attempts: list[Attempt] = []
    if found is not None:
        names = tuple(each.name for each in fields(Receipt))
        number = callout.receipt.attempt if callout.receipt else 1
        callout = replace(callout, receipt=_receipt(found, names, {found.id: number}))
        if found.notification_id is not None:
            same = row.conn_id == found.conn_id, row.notification_id == found.notification_id
            query = select(row.id, row.received_at, row.status).where(*same).order_by(row.received_at, row.id)
            attempts = [Attempt(*each) for each in session.execute(query.limit(_ATTEMPTS))]
    body = None
    if callout.report is not None:
        body = session.scalar(select(TransitionRow.body).where(TransitionRow.id == callout.report.id))
    return CalloutDetail(callout=callout, body=body, attempts=attempts)


# ---- counts


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCounts:
    """How many callouts one connection got, by their answers.

    :param conn_id: the connection; ``NO_CONNECTION``: addresses that name none
    :param answers: status -> number
    :param listed: of how many there is a receipt
    """

    conn_id: str
    answers: dict[int, int]
    listed: int

    @property
    def accepted(self) -> int:
        """How many were answered 200."""
        return self.answers.get(ACCEPTED, 0)

    @property
    def refused(self) -> dict[int, int]:
        """Status -> number of those that were not."""
        return {status: count for status, count in self.answers.items() if status != ACCEPTED}

    @property
    def unlisted(self) -> int:
        """How many have no receipt: there were too many, or it was deleted."""
        return max(sum(self.answers.values()) - self.listed, 0)


def count_answers(session: Session, since: datetime) -> list[AnswerCounts]:
    """Return the counts of each connection that got callouts, also of callouts to no connection.

    :param since: those of hours that begin then or later
    """
    found = []
    for conn_id in sorted(session.scalars(_ANSWERED)):
        row = AnswersRow
        sums = select(row.status, func.sum(row.answers)).where(row.conn_id == conn_id, row.hour >= since)
        receipts = select(func.count()).select_from(ReceiptRow)
        listed = session.scalar(receipts.where(ReceiptRow.conn_id == conn_id, ReceiptRow.received_at >= since)) or 0
        # MySQL adds up to a decimal number.
        answers = {status: int(number) for status, number in session.execute(sums.group_by(row.status))}
        found.append(AnswerCounts(conn_id=conn_id, answers=answers, listed=listed))
    return [each for each in found if each.answers]


def connections_with_callouts(session: Session) -> list[str]:
    """Return the connections that the journal has rows or counts of."""
    return sorted({*known_connections(session), *session.scalars(_ANSWERED)} - {NO_CONNECTION})


_ANSWERED: Final = union(distinct_values(AnswersRow.conn_id), distinct_values(ReceiptRow.conn_id))
