"""What the receivers of callouts saw, kept for all API servers: how many callouts got which answer, and receipts; and
what users acknowledged of it.

Unauthenticated clients cause such rows, so their number is limited, for all API servers together: of each connection so
many receipts an hour and in total, of all connections so many, and none for long. What has no receipt is counted.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow.utils.sqlalchemy import UtcDateTime
from sqlalchemy import and_, case, delete, func, insert, literal, or_, select, true, update

from airflow_mediation_provider.journal.tables import AnswersRow, ReceiptRow, TransitionRow
from airflow_mediation_provider.journal.transaction import UnstorableError, read, write
from airflow_mediation_provider.protocol.callouts.receipt import ACCEPTED, NO_CONNECTION, Receipt
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind
from airflow_mediation_provider.protocol.zuora.api_usage import beginning_of_hour

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

log = logging.getLogger(__name__)

KEPT: Final = timedelta(days=30)
"""Nothing is kept for longer, also without ``prune``."""
REFUSED_AN_HOUR: Final = 100
ACCEPTED_AN_HOUR: Final = 2000
"""Receipts of one connection."""
MOST_REFUSED: Final = 1000
MOST_ACCEPTED: Final = 10_000
"""Receipts of one connection in total; the oldest are deleted first."""
MOST: Final = 100_000
"""Receipts of all connections together."""
REFUSED_FOR: Final = timedelta(days=7)
"""Refusals without an accepted callout since are shown for so long: a meter may run once a week."""
MISADDRESSED_FOR: Final = timedelta(days=1)
"""No accepted callout ends those to a connection that does not exist."""
_BATCH: Final = 500
_LONGEST_USER: Final = 250
_NAMES: Final = tuple(field.name for field in fields(Receipt))


class AnswerKey(NamedTuple):
    """What is counted together: one answer of one connection within one hour."""

    conn_id: str
    hour: datetime
    status: int


@dataclass(slots=True)
class Answers:
    """How often one answer was given.

    :param answers: the number
    :param since_accepted: of these, those after which no callout was accepted
    :param without_receipt: of these, those that have no receipt
    :param last_at: when the last one of these callouts was received
    """

    last_at: datetime
    answers: int = 0
    since_accepted: int = 0
    without_receipt: int = 0


class Seen:
    """What one process saw since it last wrote: all callouts are counted, and of so many there is a receipt.

    :param most: receipts of one connection with one kind of answer
    """

    def __init__(self, most: int = REFUSED_AN_HOUR) -> None:
        self._most = most
        self.answers: dict[AnswerKey, Answers] = {}
        self._receipts: dict[tuple[str, bool], list[Receipt]] = defaultdict(list)

    def add(self, each: Receipt) -> None:
        """Add a callout, and drop its receipt if there are too many."""
        key = AnswerKey(each.conn_id, beginning_of_hour(each.received_at), each.status)
        counted = self.answers.setdefault(key, Answers(each.received_at))
        counted.answers += 1
        counted.last_at = max(counted.last_at, each.received_at)
        if each.accepted:
            for other, refused in self.answers.items():
                if other.conn_id == each.conn_id:
                    refused.since_accepted = 0
        else:
            counted.since_accepted += 1
        if each.conn_id == NO_CONNECTION:
            return
        receipts = self._receipts[each.conn_id, each.accepted]
        if len(receipts) < self._most:
            receipts.append(each)
        else:
            counted.without_receipt += 1

    def __bool__(self) -> bool:
        """Return whether there is anything to write."""
        return bool(self.answers)

    @property
    def receipts(self) -> dict[tuple[str, bool, datetime], list[Receipt]]:
        """The receipts, by their connection, whether they were accepted, and the hour."""
        found = defaultdict(list)
        for (conn_id, accepted), receipts in self._receipts.items():
            for each in receipts:
                found[conn_id, accepted, beginning_of_hour(each.received_at)].append(each)
        return found


def record_receipts(seen: Seen, *, deadline_seconds: float = 5.0) -> None:
    """Store what a process saw; the same again would count twice.

    :param seen: not changed meanwhile
    :param deadline_seconds: how long to wait for the turn to write
    :raises JournalUnavailable: nothing was written
    """
    try:
        write(lambda session: _store(session, seen), deadline_seconds=deadline_seconds)
    except UnstorableError as error:
        log.warning("What some callouts were answered is left out: %s", error)


def _store(session: Session, seen: Seen) -> None:
    # The same order in all writers, so that two of them never wait for each other.
    for key, counted in sorted(seen.answers.items()):
        if key.status == ACCEPTED:
            _settle(session, key.conn_id, counted.last_at)
    for key, counted in sorted(seen.answers.items()):
        _count(session, key, counted)
    for (conn_id, accepted, hour), receipts in sorted(seen.receipts.items()):
        room = _room(session, conn_id, hour, len(receipts), accepted=accepted)
        for status, late in Counter(each.status for each in receipts[room:]).items():
            row = update(AnswersRow).filter_by(**AnswerKey(conn_id, hour, status)._asdict())
            _execute(session, row.values(without_receipt=AnswersRow.without_receipt + late))
        if receipts[:room]:
            session.execute(insert(ReceiptRow), [_values(each) for each in receipts[:room]])


def _settle(session: Session, conn_id: str, accepted_at: datetime) -> None:
    """Note that a callout was accepted: refusals before it are over."""
    over = AnswersRow.conn_id == conn_id, AnswersRow.since_accepted > 0, AnswersRow.last_at < accepted_at
    _execute(session, update(AnswersRow).where(*over).values(since_accepted=0))


def _count(session: Session, key: AnswerKey, counted: Answers) -> None:
    at = literal(counted.last_at, UtcDateTime)
    more: dict[str, Any] = {
        name: getattr(AnswersRow, name) + getattr(counted, name)
        for name in ("answers", "since_accepted", "without_receipt")
    }
    more["last_at"] = case((AnswersRow.last_at < at, at), else_=AnswersRow.last_at)
    known = _execute(session, update(AnswersRow).filter_by(**key._asdict()).values(**more))
    if not known:
        # Another writer's insert at the same time makes this transaction fail, and it is retried.
        values = {field.name: getattr(counted, field.name) for field in fields(Answers)}
        session.execute(insert(AnswersRow).values(**key._asdict(), **values))


def _room(session: Session, conn_id: str, hour: datetime, wanted: int, *, accepted: bool) -> int:
    """Return how many more receipts of an hour may be stored, of those that are counted already."""
    counted = select(func.sum(AnswersRow.answers - AnswersRow.without_receipt)).filter_by(conn_id=conn_id, hour=hour)
    of_kind = AnswersRow.status == ACCEPTED if accepted else AnswersRow.status != ACCEPTED
    # MySQL adds up to a decimal number.
    before = int(session.scalar(counted.where(of_kind)) or 0) - wanted
    return max((ACCEPTED_AN_HOUR if accepted else REFUSED_AN_HOUR) - before, 0)


def _values(each: Receipt) -> dict[str, Any]:
    values = {name: getattr(each, name) for name in _NAMES}
    return {**values, "proof": str(each.proof), "accepted": each.accepted}


def _execute(session: Session, statement: Any) -> int:
    result: Any = session.execute(statement.execution_options(synchronize_session=False))
    return int(result.rowcount)


def thin(now: datetime, *, deadline_seconds: float = 5.0) -> int:
    """Delete what is too old or too much, and return how many rows were deleted.

    :param now: the time now
    :param deadline_seconds: how long to wait for the turn to write, for each of several short transactions
    :raises JournalUnavailable: not all was deleted
    """
    limits: list[tuple[ColumnElement[bool], int]] = [(ReceiptRow.received_at < now - KEPT, 0)]
    for conn_id in read(lambda session: session.scalars(select(AnswersRow.conn_id).distinct()).all()):
        of_connection = ReceiptRow.conn_id == conn_id
        limits.append((and_(of_connection, ReceiptRow.accepted.is_(False)), MOST_REFUSED))
        limits.append((and_(of_connection, ReceiptRow.accepted.is_(True)), MOST_ACCEPTED))
    deleted = sum(_delete_beyond(which, most, deadline_seconds) for which, most in (*limits, (true(), MOST)))
    past = delete(AnswersRow).where(AnswersRow.hour < now - KEPT)
    return deleted + write(lambda session: _execute(session, past), deadline_seconds=deadline_seconds)


def _delete_beyond(which: ColumnElement[bool], most: int, deadline_seconds: float) -> int:
    """Delete all but the newest of some receipts, and return how many."""
    row = ReceiptRow
    beyond = select(row.id).where(which).order_by(row.received_at.desc(), row.id.desc()).offset(most).limit(_BATCH)

    def batch(session: Session) -> int:
        ids = session.scalars(beyond).all()
        return _execute(session, delete(row).where(row.id.in_(ids))) if ids else 0

    total = 0
    while deleted := write(batch, deadline_seconds=deadline_seconds):
        total += deleted
    return total


# ---- reading


@dataclass(frozen=True, slots=True)
class Refusals:
    """Callouts of one connection that got one answer, and after which none was accepted.

    :param conn_id: the connection; ``NO_CONNECTION`` for those that name none
    :param status: the answer
    :param count: their number
    :param since: when the last accepted one was received; if that is longer ago, since when refusals count
    :param last_at: when the last of them was received
    """

    conn_id: str
    status: int
    count: int
    since: datetime
    last_at: datetime


def refusals(session: Session, now: datetime) -> list[Refusals]:
    """Return what all API servers refused since they last accepted a callout of the same connection, within a week, and
    no user acknowledged.

    Of callouts to connections that do not exist, those of a day.

    :param now: the time now
    """
    row = AnswersRow
    accepted = (
        select(row.conn_id, func.max(row.last_at).label("at"))
        .where(row.status == ACCEPTED, row.hour >= now - KEPT)
        .group_by(row.conn_id)
        .subquery()
    )
    # A server may have stored a refusal after another server stored a later callout.
    unanswered = and_(
        row.conn_id != NO_CONNECTION,
        row.last_at > now - REFUSED_FOR,
        or_(accepted.c.at.is_(None), row.last_at > accepted.c.at),
    )
    misaddressed = and_(row.conn_id == NO_CONNECTION, row.last_at > now - MISADDRESSED_FOR)
    found = session.execute(
        select(row.conn_id, row.status, func.sum(row.since_accepted), func.max(accepted.c.at), func.max(row.last_at))
        .outerjoin(accepted, accepted.c.conn_id == row.conn_id)
        .where(row.hour >= now - REFUSED_FOR - timedelta(hours=1), row.since_accepted > 0)
        .where(or_(unanswered, misaddressed))
        .group_by(row.conn_id, row.status)
        .order_by(row.conn_id, row.status)
    )
    oldest = now - REFUSED_FOR
    return [
        Refusals(conn_id, status, int(count), max(accepted_at or oldest, oldest), last_at)
        for conn_id, status, count, accepted_at, last_at in found
    ]


# ---- acknowledging


def acknowledge_unparsed(
    conn_id: str,
    by: str,
    at: datetime,
    *,
    row_id: int | None = None,
    until: datetime | None = None,
    deadline_seconds: float = 5.0,
) -> int:
    """Note that a user acknowledged unparsed callouts, and return how many: they are no problem any more.

    :param conn_id: their connection
    :param by: the user's name
    :param at: when
    :param row_id: only this one
    :param until: else those that the journal had then: what came later, the user has not seen; ``at`` by default
    :param deadline_seconds: how long to wait for the turn to write, for each of several short transactions
    """
    row = TransitionRow
    of_kind = row.conn_id == conn_id, row.kind == EntryKind.UNPARSED, row.acknowledged_at.is_(None)
    which = row.created_at <= (until or at) if row_id is None else row.id == row_id
    # Callouts are stored meanwhile, so each transaction is short; it begins after the rows of the one before it.
    query = select(row.created_at, row.id).where(*of_kind, which).order_by(row.created_at, row.id).limit(_BATCH)

    def batch(session: Session, after: tuple[datetime, int] | None) -> tuple[int, tuple[datetime, int] | None]:
        beyond = (
            [] if after is None else [row.created_at >= after[0], or_(row.created_at > after[0], row.id > after[1])]
        )
        found = [(created_at, number) for created_at, number in session.execute(query.where(*beyond))]
        if not found:
            return 0, None
        # Another user may have acknowledged some since they were read.
        these = row.id.in_([number for _, number in found]), row.acknowledged_at.is_(None)
        return _execute(session, update(row).where(*these).values(**_mark(by, at))), found[-1]

    total, last = write(partial(batch, after=None), deadline_seconds=deadline_seconds)
    while last is not None:
        done, last = write(partial(batch, after=last), deadline_seconds=deadline_seconds)
        total += done
    return total


def acknowledge_refused(
    conn_id: str,
    by: str,
    at: datetime,
    *,
    receipt_id: int | None = None,
    until: datetime | None = None,
    deadline_seconds: float = 5.0,
) -> int:
    """Note that a user acknowledged refused callouts, and return how many: they are no problem any more.

    :param conn_id: their connection; ``NO_CONNECTION``: those to addresses that name none, which have no receipts
    :param by: the user's name
    :param at: when
    :param receipt_id: only this one
    :param until: else those that were received until then, also those without a receipt; ``at`` by default
    """
    row, counted, until = ReceiptRow, AnswersRow, until or at
    of_kind = row.conn_id == conn_id, row.accepted.is_(False), row.acknowledged_at.is_(None)
    which = (*of_kind, row.received_at <= until if receipt_id is None else row.id == receipt_id)
    of_connection = counted.conn_id == conn_id, counted.since_accepted > 0

    def work(session: Session) -> int:
        accepted = select(func.max(counted.last_at)).filter_by(conn_id=conn_id, status=ACCEPTED)
        last_accepted = session.scalar(accepted)
        # Locked, so that two users who acknowledge the same do not count it twice.
        query = select(row.status, row.received_at).where(*which).order_by(row.received_at, row.id).with_for_update()
        found = session.execute(query).all()
        # Those before the last accepted callout do not count as refused any more.
        left = Counter(
            (beginning_of_hour(received_at), status)
            for status, received_at in found
            if last_accepted is None or received_at > last_accepted
        )
        total = len(found)
        if receipt_id is None:
            over = select(func.sum(counted.since_accepted)).where(*of_connection, counted.last_at <= until)
            total = max(total, int(session.scalar(over) or 0))
            _execute(session, update(counted).where(*of_connection, counted.last_at <= until).values(since_accepted=0))
        for (hour, status), number in sorted(left.items()):
            fewer = case((counted.since_accepted > number, counted.since_accepted - number), else_=0)
            same = {"conn_id": conn_id, "hour": hour, "status": status}
            _execute(session, update(counted).filter_by(**same).values(since_accepted=fewer))
        _execute(session, update(row).where(*which).values(**_mark(by, at)))
        return total

    return write(work, deadline_seconds=deadline_seconds)


def _mark(by: str, at: datetime) -> dict[str, Any]:
    return {"acknowledged_at": at, "acknowledged_by": by[:_LONGEST_USER]}
