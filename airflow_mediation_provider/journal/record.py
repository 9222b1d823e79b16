"""The journal's only writer: what was told becomes rows, states of sessions and asset events, in one transaction.

The row comes first: with it SQLite's write lock is held, and Airflow's asset manager, which rolls back where it finds
the database locked, never has to. Then the session's row is locked, and all that is known of the session is folded
anew. Of two writers at once the second waits for that lock, and so folds what the first one wrote as well.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Executable, insert, select, true, update
from sqlalchemy.dialects import postgresql, sqlite

from airflow_mediation_provider import metrics
from airflow_mediation_provider.journal.emission import Event, emit
from airflow_mediation_provider.journal.queries import transitions
from airflow_mediation_provider.journal.rows import POLL_DRIVES, POLL_TELLS, session_values, transition_values
from airflow_mediation_provider.journal.tables import Base, SessionRow, TransitionRow
from airflow_mediation_provider.journal.transaction import (
    JournalMissing,
    JournalUnavailable,
    unavailable,
    write,
)
from airflow_mediation_provider.protocol.entry import Entry, EntryKind
from airflow_mediation_provider.protocol.lifecycle import SessionState, departures, fold
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, DEBUG_ONLY, TERMINAL, RunType
from airflow_mediation_provider.protocol.transition import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

log = logging.getLogger(__name__)

__all__ = ["JournalMissing", "JournalUnavailable", "Recorded", "record", "rewrite", "unavailable"]

_ENDS: Final = TERMINAL[RunType.NORMAL]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a call of ``record`` changed.

    :param new: rows that were written
    :param duplicates: entries that were known, by their notification id or as the same poll again
    :param changed: sessions of which more is known now
    :param emitted: addresses of the assets that got an event
    """

    new: int = 0
    duplicates: int = 0
    changed: tuple[SessionState, ...] = ()
    emitted: tuple[str, ...] = ()


def record(
    entries: Sequence[Entry], *, conn_id: str, team: str | None = None, deadline_seconds: float = 8.0
) -> Recorded:
    """Keep what was told, and return when it is durable; all of it, or with an error none of it.

    May be called from any thread; each call has a database session of its own.

    :param entries: what was told, in any order
    :param conn_id: the connection that it came over
    :param team: the connection's team, where Airflow has teams
    :param deadline_seconds: how long to try
    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is locked, away or broken, and stays so
    """
    if not entries:
        return Recorded()
    return _in_transaction(lambda writer: writer.write(entries), conn_id, team, deadline_seconds)


def rewrite(
    entries: Mapping[int, Entry], *, conn_id: str, team: str | None = None, deadline_seconds: float = 8.0
) -> Recorded:
    """Let rows that nobody could read say what they say now, as if they had from the beginning; or all stays as it is.

    A row keeps its notification id and its time, so what Zuora sends once more is known still.

    :param entries: what to put into the place of UNPARSED rows, by their ids; a row that is none any more was written
        by somebody else meanwhile, and is a duplicate
    :param conn_id: the connection of the rows
    :param team: the connection's team, where Airflow has teams
    :param deadline_seconds: how long to try
    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is locked, away or broken, and stays so
    """
    return _in_transaction(lambda writer: writer.rewrite(entries), conn_id, team, deadline_seconds)


def _in_transaction(
    work: Callable[[_Writer], Recorded], conn_id: str, team: str | None, deadline_seconds: float
) -> Recorded:
    def attempt(session: Session) -> tuple[Recorded, list[Callable[[], None]]]:
        writer = _Writer(session, conn_id, team)
        return work(writer), writer.after

    recorded, after = write(attempt, deadline_seconds=deadline_seconds)
    for call in after:
        try:
            call()
        except Exception:  # the event is durable; a listener's trouble is the listener's
            log.exception("A listener of asset events failed")
    return recorded


def _count(conn_id: str, told: Sequence[Mapping[str, Any]], emitted: Sequence[str]) -> None:
    """Count what has become durable: once, however often the transaction was tried, and whoever told it again.

    :param told: the rows that were written
    :param emitted: addresses of the assets that got an event
    """
    for row in told:
        if row["kind"] == EntryKind.STATUS_CHANGE:
            status = metrics.status_tag(row["status"])
            metrics.TRANSITIONS.add(conn_id=conn_id, evidence=row["source"], run_type=row["run_type"], status=status)
        elif row["kind"] == EntryKind.UNPARSED:
            metrics.CALLOUTS_UNPARSED.add(conn_id=conn_id)
    for uri in emitted:
        metrics.ASSET_EVENTS.add(conn_id=conn_id, status=metrics.status_tag(uri.rpartition("/")[2]))


@cache
def _insert_or_ignore(dialect: str, table: type[Base]) -> Executable:
    """Return the statement that inserts a row unless there is one of its key."""
    # Not through the ORM, which would do as much work again for a row that nobody looks at afterwards.
    rows = Base.metadata.tables[table.__tablename__]
    match dialect:
        case "postgresql":
            return postgresql.insert(rows).on_conflict_do_nothing()
        case "sqlite":
            return sqlite.insert(rows).on_conflict_do_nothing()
    return insert(rows).prefix_with("IGNORE")


class _Writer:
    """One transaction.

    :param session: commits and rolls back are its owner's
    """

    def __init__(self, session: Session, conn_id: str, team: str | None) -> None:
        self._session = session
        self._conn_id = conn_id
        self._team = team
        self._events: list[Event] = []
        self._told: list[Mapping[str, Any]] = []
        self.after: list[Callable[[], None]] = []

    def write(self, entries: Sequence[Entry]) -> Recorded:
        # In one order over all writers, so that two of them with the same ids do not wait for each other.
        ordered = sorted(entries, key=lambda entry: (entry.notification_id or "", entry.observed_at))
        touched = set()
        polls = []
        new = 0
        for entry in ordered:
            values = transition_values(entry, conn_id=self._conn_id, at=datetime.now(UTC))
            if values["kind"] == EntryKind.POLL:
                polls.append((entry, values))
            elif self._add(TransitionRow, values) or self._says_more(values):
                new += 1
                touched |= self._take(values)
        changed = self._refolded(touched)
        # A poll is held against what is known of the sessions.
        new += sum(self._poll(*poll) for poll in polls)
        return self._emitted(new, len(entries) - new, changed)

    def rewrite(self, entries: Mapping[int, Entry]) -> Recorded:
        touched = set()
        new = 0
        for row_id, entry in sorted(entries.items()):
            values = transition_values(entry, conn_id=self._conn_id, at=datetime.now(UTC))
            if self._replace_unread(row_id, values):
                new += 1
                touched |= self._take(values)
        return self._emitted(new, len(entries) - new, self._refolded(touched))

    def _take(self, values: Mapping[str, Any]) -> set[tuple[str, str]]:
        """Take note of a new row, and return the session of which it tells, if any."""
        self._told.append(values)
        tells = values["kind"] == EntryKind.STATUS_CHANGE
        return {(values["meter_id"], values["session_id"])} if tells else set()

    def _replace_unread(self, row_id: int, values: Mapping[str, Any]) -> bool:
        """Let an UNPARSED row say what it says now, and say whether it was one; its id and its time stay."""
        said = {
            name: value for name, value in values.items() if name not in ("conn_id", "notification_id", "created_at")
        }
        unread = TransitionRow.id == row_id, TransitionRow.kind == EntryKind.UNPARSED
        statement = update(TransitionRow).where(*unread).values(**said)
        return bool(self._session.execute(statement).rowcount)  # type: ignore[attr-defined]

    def _says_more(self, values: dict[str, Any]) -> bool:
        """Keep a callout whose notification id is known and that says something else, and say whether it does.

        What nobody could read when it came first can be read now: the settings were put right, say. And that an id is
        of one change alone is Zuora's word; a change that it is not true of must not get lost.
        """
        if values["kind"] != EntryKind.STATUS_CHANGE or values["source"] != Source.CALLOUT:
            return False
        names = ("meter_id", "session_id", "status", "previous_status")
        told = select(TransitionRow.id, TransitionRow.kind, *(getattr(TransitionRow, name) for name in names))
        same_id = {name: values[name] for name in ("conn_id", "notification_id")}
        known = self._session.execute(told.filter_by(**same_id)).one_or_none()
        edge = tuple(values[name] for name in names)
        if known is None or tuple(known[2:]) == edge:
            return False
        if known.kind == EntryKind.UNPARSED:
            return self._replace_unread(known.id, values)
        digest = hashlib.sha256(json.dumps([values["notification_id"], *edge]).encode()).hexdigest()
        values["notification_id"] = f"other:{digest[:40]}"
        return self._add(TransitionRow, values)

    def _refolded(self, sessions: set[tuple[str, str]]) -> tuple[SessionState, ...]:
        return tuple(self._refold(*key) for key in sorted(sessions))

    def _emitted(self, new: int, duplicates: int, changed: tuple[SessionState, ...]) -> Recorded:
        """Hand the events over to Airflow, which is the last thing of each transaction."""
        emitted, self.after = emit(self._events, conn_id=self._conn_id, team=self._team, session=self._session)
        self.after.append(partial(_count, self._conn_id, tuple(self._told), emitted))
        return Recorded(new=new, duplicates=duplicates, changed=changed, emitted=emitted)

    def _add(self, table: type[Base], values: dict[str, Any]) -> bool:
        """Insert a row unless it is there, and say whether it was not; waits for whoever just inserts the same."""
        statement = _insert_or_ignore(self._session.get_bind().dialect.name, table)
        return bool(self._session.execute(statement, values).rowcount)  # type: ignore[attr-defined]

    # ---- sessions

    def _refold(self, meter_id: str, session_id: str) -> SessionState:
        """Fold all that was told of a session into its row, and note the event that follows."""
        for _ in range(2):
            row = self._locked(meter_id, session_id)
            told = transitions(self._session, self._conn_id, [(meter_id, session_id)])
            state = fold(told)
            # The how manieth arrival at this status it is. A status that was never left is announced once, however the
            # reports of it were shuffled and repeated; one that was left and reached again is news.
            arrival = departures(told)[state.status] + 1
            emitted = row.emitted if row else {}
            news = state.starts_dags and emitted.get(state.status, 0) < arrival
            values = {
                **session_values(state),
                "emitted": {**emitted, state.status: arrival} if news else emitted,
                "revision": row.revision + 1 if row else 1,
                "updated_at": datetime.now(UTC),
            }
            if row is not None:
                for name, value in values.items():
                    setattr(row, name, value)
                self._session.flush()
            elif not self._add(SessionRow, {**values, **self._key(meter_id, session_id)}):
                continue  # another writer made the row meanwhile, and perhaps changed what there is to fold
            if news:
                extra = {**state.transition.to_dict(), "evidence": str(state.source), "certain": not state.conflict}
                self._announce(meter_id, state.status, session_id, extra)
            return state
        raise JournalUnavailable(f"the row of session {session_id} vanished")

    def _key(self, meter_id: str, session_id: str) -> dict[str, str]:
        return {"conn_id": self._conn_id, "meter_id": meter_id, "session_id": session_id}

    def _locked(self, meter_id: str, session_id: str) -> SessionRow | None:
        return self._session.scalar(
            select(SessionRow)
            .filter_by(**self._key(meter_id, session_id))
            .with_for_update()
            .execution_options(populate_existing=True)
        )

    def _announce(self, meter_id: str, status: str, partition_key: str, extra: dict[str, Any]) -> None:
        self._events.append(Event(meter_id=meter_id, status=status, partition_key=partition_key, extra=extra))

    # ---- polls

    def _poll(self, entry: Entry, values: dict[str, Any]) -> bool:
        """Keep a poll that shows another status than the one before, and say whether it does."""
        # Those that drive are compared among themselves: what a waiting task saw first must not take their event away.
        series = POLL_DRIVES if entry.drives else POLL_TELLS
        last = self._last_poll(values["meter_id"], series)
        if last is not None and (last.status == values["status"] or last.observed_at >= entry.observed_at):
            return False
        # Named after the one before: of two that follow the same one, only the first is kept.
        values["notification_id"] = f"{series}:{values['meter_id']}:{last.id if last else 0}"
        values["previous_status"] = last.status if last else None
        if not self._add(TransitionRow, values):
            return False
        if entry.drives and last is not None:
            self._drive(entry, last)
        return True

    def _last_poll(self, meter_id: str, series: str, *which: ColumnElement[bool]) -> TransitionRow | None:
        polls = select(TransitionRow).filter_by(conn_id=self._conn_id, meter_id=meter_id, kind=str(EntryKind.POLL))
        return self._session.scalar(
            polls.where(TransitionRow.session_id.is_(None), TransitionRow.notification_id.startswith(series), *which)
            # By the index of sessions: in the order of ids alone, PostgreSQL would look through the whole table.
            .order_by(TransitionRow.session_id.desc(), TransitionRow.id.desc())
            .limit(1)
        )

    def _drive(self, entry: Entry, last: TransitionRow) -> None:
        """Announce what a poll shows, where it stands in for callouts: of the one live session, else of nobody's.

        :param last: the poll before it, which showed another status
        """
        told = entry.transition
        if told is None:
            return
        run_type = RunType.DEBUG if told.status in DEBUG_ONLY else RunType.NORMAL
        of_meter = select(SessionRow).filter_by(conn_id=self._conn_id, meter_id=told.meter_id, run_type=str(run_type))
        # A session that was live when a poll last showed an end has ended then, or nobody knows any more.
        ended = self._last_poll(
            told.meter_id, POLL_DRIVES, TransitionRow.status.in_(_ENDS), TransitionRow.id <= last.id
        )
        rows = self._session.scalars(
            of_meter.where(SessionRow.terminal.is_(False))
            .where(SessionRow.begun_at > ended.observed_at if ended else true())
            .order_by(SessionRow.session_id)
            # A callout at the same time must see what this announces, and this what the callout does.
            .with_for_update()
            .execution_options(populate_existing=True)
        ).all()
        # A session that came to this status since the poll before, and said so itself, has been announced.
        known = of_meter.where(SessionRow.status == told.status, SessionRow.ambiguous.is_(False))
        known = known.where(SessionRow.last_observed_at >= last.observed_at)
        if self._session.scalar(known.limit(1)) is not None:
            return
        live = [row for row in rows if not ANY_TERMINAL & row.emitted.keys()]
        key = f"poll-{told.meter_id}-{told.status}-{entry.observed_at:%Y%m%dT%H%M%S.%fZ}"
        extra = {**told.to_dict(), "evidence": str(entry.source), "certain": False}
        if len(live) == 1:
            (row,) = live
            if row.emitted.get(told.status, 0):
                return
            row.emitted = {**row.emitted, told.status: 1}
            # Whoever looks for the event of a session looks around the time of its row.
            row.updated_at = datetime.now(UTC)
            key = extra["session_id"] = row.session_id
        self._announce(told.meter_id, told.status, key, extra)
