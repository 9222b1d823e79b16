"""Which sessions a list shows, from which place on, and how far a search for them goes.

One filter is read off an index. There is none for each combination of filters, as each callout would pay for them all.
So where there are several, so many sessions of the rarest one are looked at and no more, and the next search goes on
from there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, func, or_, select, true

from airflow_mediation_provider.journal.tables import SessionRow

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

LOOKED_AT: Final = 2_000
"""So many sessions of the rarest of several filters are looked at."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Of instants within the calendar, and numbers within what databases have for them.
_PLACE: Final = re.compile(r"[0-9]{1,17}-[0-9]{1,18}")
_METER: Final = ("conn_id", "meter_id")
_NAMES: Final = (*_METER, "status", "run_type")


class Place(NamedTuple):
    """Where in the list a session stands: what comes later in it began earlier."""

    begun_at: datetime
    id: int

    def __str__(self) -> str:
        """Return the place as it stands in an address."""
        return f"{(self.begun_at - _EPOCH) // timedelta(microseconds=1)}-{self.id}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read a place.

        :raises ValueError: it is none
        """
        if not _PLACE.fullmatch(text):
            raise ValueError(f"{text!r} is no place in the list")
        at, _, number = text.partition("-")
        return cls(_EPOCH + timedelta(microseconds=int(at)), int(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which sessions; what is ``None`` is no matter.

    :param since: that began then or later
    :param until: and before then
    """

    conn_id: str | None = None
    meter_id: str | None = None
    status: str | None = None
    run_type: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def where(self) -> ColumnElement[bool]:
        """Return the condition."""
        return and_(true(), *self.same(), *self.times())

    def values(self) -> dict[str, str]:
        """Return what columns must be."""
        return {name: value for name in _NAMES if (value := getattr(self, name)) is not None}

    def same(self) -> list[ColumnElement[bool]]:
        """Return the conditions on these."""
        return [_column(name) == value for name, value in self.values().items()]

    def times(self) -> list[ColumnElement[bool]]:
        """Return the conditions on when a session began."""
        bounds = ((self.since, SessionRow.begun_at.__ge__), (self.until, SessionRow.begun_at.__lt__))
        return [compare(bound) for bound, compare in bounds if bound is not None]

    def leads(self) -> list[tuple[str, ...]]:
        """Return the columns that lead to sessions in the order of the list: for each of these there is an index."""
        names = list(self.values())
        if names[:2] == list(_METER):
            return [_METER, *((name,) for name in names[2:])]
        return [(name,) for name in names]


def look(
    session: Session, filters: Filters, place: Place | None, *, back: bool
) -> tuple[Place | None, ColumnElement[bool]]:
    """Return where a search ends, ``None`` where it looks at all there is, and the condition of what it looks for.

    :param place: where it begins; ``None``: at the first one
    :param back: whether to older ones
    """
    begun = SessionRow.begun_at
    times, beyond = filters.times(), []
    if place is not None:
        # SQLite goes through an index between the first bounds of each side, so the nearest ones come first.
        times.insert(0, begun <= place.begun_at if back else begun >= place.begun_at)
        later = begun < place.begun_at if back else begun > place.begun_at
        beyond.append(or_(later, SessionRow.id < place.id if back else SessionRow.id > place.id))
    if len(filters.leads()) < 2:
        return None, and_(true(), *filters.same(), *times, *beyond)
    end, which = few(session, filters, LOOKED_AT, times, back=back)
    if end is None:
        return None, and_(which, *times, *beyond)
    within = begun >= end if back else begun <= end
    # The next search begins beyond all that began at the same instant.
    return Place(end if back else end + timedelta(microseconds=1), 0), and_(which, within, *times, *beyond)


def few(
    session: Session, filters: Filters, most: int, times: list[ColumnElement[bool]], *, back: bool = True
) -> tuple[datetime | None, ColumnElement[bool]]:
    """Return the instant where so many sessions of the rarest filter end, and the condition of what fits among them.

    The instant is ``None`` where there are no more of them. The rarest filter is the one of which so many take the
    longest time. When the sessions began, the condition leaves aside.

    :param most: how many
    :param times: when they began
    :param back: whether the newest of them, or the oldest
    """
    begun, values, ends = SessionRow.begun_at, filters.values(), {}
    for lead in filters.leads() or [()]:
        of_lead = select(begun).where(true(), *(_column(name) == values[name] for name in lead), *times)
        ordered = of_lead.order_by(begun.desc() if back else begun)
        ends[lead] = session.scalar(ordered.offset(most).limit(1))

    def distance(lead: tuple[str, ...]) -> float:
        end = ends[lead]
        return math.inf if end is None else (-1 if back else 1) * end.timestamp()

    rarest = max(ends, key=distance)
    same = (
        (_column(name) if name in rarest else without_index(_column(name))) == value for name, value in values.items()
    )
    return ends[rarest], and_(true(), *same)


def without_index(column: Any) -> ColumnElement[str]:
    """Return a column as no index has it, where another condition leads to the rows.

    SQLite does not know how often a value occurs, and takes any index that fits.
    """
    return func.coalesce(column, "")


def _column(name: str) -> Any:
    return getattr(SessionRow, name)
