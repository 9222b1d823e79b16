"""The journal's only writer: entries become rows, states of sessions and asset events, in one transaction.

The row comes first: it takes SQLite's write lock. Otherwise Airflow's asset manager could wait for that lock, and it
rolls back if the database is locked. Then the session's row is locked, and its state is folded again from all its
reports. Of two concurrent writers the second waits for that lock, and so folds what the first one wrote as well.

Unparsed callouts are parsed again on demand, for example by a newer version or with other settings.
The new content replaces the old in one transaction with everything that follows from it. The row keeps its notification
id, so a repeated callout does not count twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, or_, select, true, update

from airflow_mediation_provider import metrics
from airflow_mediation_provider.journal.asset_events import Event, emit
from airflow_mediation_provider.journal.meters import ReportedName, store_names
from airflow_mediation_provider.journal.queries import transitions
from airflow_mediation_provider.journal.rows import (
    POLL_DRIVES,
    POLL_ONLY,
    best_values,
    of_session,
    refused_values,
    session_values,
    transition_values,
    unreported_values,
)
from airflow_mediation_provider.journal.tables import Base, ListedRow, SessionRow, TransitionRow
from airflow_mediation_provider.journal.task_reports import (
    store_end_status,
    store_note,
    store_verdicts,
    verdicts_of,
    why_not_note,
)
from airflow_mediation_provider.journal.transaction import (
    JournalMissing,
    JournalUnavailable,
    UnstorableError,
    add,
    read,
    unavailable,
    write,
)
from airflow_mediation_provider.protocol.callouts.history import BODY_KEY, awaits
from airflow_mediation_provider.protocol.callouts.parse import read_again
from airflow_mediation_provider.protocol.sessions.asset_uri import read_asset_uri
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, departures, fold, passed
from airflow_mediation_provider.protocol.sessions.session_result import session_result
from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict, best_known
from airflow_mediation_provider.protocol.status import (
    ANY_TERMINAL,
    ENDS_BY_POLL,
    RunType,
    run_type_shown,
)
from airflow_mediation_provider.protocol.transition import SessionTransition, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from sqlalchemy import ColumnElement, Row
    from sqlalchemy.orm import Session

    from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings

log = logging.getLogger(__name__)

__all__ = ["JournalMissing", "JournalUnavailable", "Recorded", "rate", "record", "rewrite", "unavailable"]

# Columns, not objects: an unreported row can become a reported one, which is another class.
_SESSIONS: Final = Base.metadata.tables[ListedRow.__tablename__]
_LOCKED: Final = select(_SESSIONS).where(*of_session(_SESSIONS)).with_for_update()

_BATCH: Final = 100
_DEADLINE_SECONDS: Final = 60.0
_LAST_SECONDS: Final = 0.1
Report = JournalEntry | TaskVerdict | TaskNote


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a call of ``record`` changed.

    :param new: number of rows that were written
    :param duplicates: number of entries that were stored already, with the same notification id or as the same poll
    :param changed: the new states of sessions with new reports
    :param emitted: addresses of the assets that got an event
    :param refused: one sentence for each report, verdict and note that is not stored as what it is
    :param row_ids: of the rows that callouts, history and run replies added or replaced
    """

    new: int = 0
    duplicates: int = 0
    changed: tuple[SessionState, ...] = ()
    emitted: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    row_ids: tuple[int, ...] = ()

    def __add__(self, other: Recorded) -> Recorded:
        """Return what both calls changed."""
        return Recorded(
            new=self.new + other.new,
            duplicates=self.duplicates + other.duplicates,
            changed=(*self.changed, *other.changed),
            emitted=(*self.emitted, *other.emitted),
            refused=(*self.refused, *other.refused),
            row_ids=(*self.row_ids, *other.row_ids),
        )


def record(
    entries: Sequence[JournalEntry],
    *,
    conn_id: str,
    team: str | None = None,
    verdicts: Sequence[TaskVerdict] = (),
    tasks: Sequence[TaskNote] = (),
    deadline_seconds: float = 8.0,
) -> Recorded:
    """Store reports, and return when they are durable: all of them, or with an error none of them.

    What cannot be stored is left out, a report is kept as text, and the rest is stored. May be called from any thread;
    each call has a database session of its own.

    :param entries: the reports, in any order
    :param verdicts: what tasks concluded from polls; the first of each try counts
    :param tasks: notes of tasks that do not wait
    :param conn_id: the connection over which all of this was reported
    :param team: the connection's team, where Airflow has teams
    :param deadline_seconds: how long to try
    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is still locked, unreachable or broken at the deadline
    """
    if not (entries or verdicts or tasks):
        return Recorded()
    deadline = time.monotonic() + deadline_seconds

    def store(work: Callable[[_Writer], Recorded]) -> Recorded:
        return _in_transaction(work, conn_id, team, max(deadline - time.monotonic(), _LAST_SECONDS))

    try:
        return store(lambda writer: writer.write(entries, verdicts, tasks))
    except UnstorableError as error:
        log.warning("Reports for connection %s are stored one by one, because %s", conn_id, error)
    items: tuple[Report, ...] = (*entries, *verdicts, *tasks)
    return sum((_alone(store, item) for item in items), Recorded())


def _alone(store: Callable[[Callable[[_Writer], Recorded]], Recorded], item: Report) -> Recorded:
    """Store one item in a transaction of its own; where the database refuses it, as text or not at all."""
    error = ""
    try:
        match item:
            case JournalEntry():
                return store(lambda writer: writer.write([item]))
            case TaskVerdict():
                return store(lambda writer: writer.write([], [item]))
            case _:
                return store(lambda writer: writer.write([], [], [item]))
    except UnstorableError as refusal:
        error = str(refusal)
    refused = Recorded(refused=(f"{_named(item)}: {error}",))
    if not isinstance(item, JournalEntry):
        return refused
    return store(lambda writer: writer.write_refused(item, error)) + refused


def _named(item: Report) -> str:
    match item:
        case JournalEntry():
            return f"the {item.kind} of session {item.session_id!a:.80} by {item.source}"
        case TaskVerdict():
            return f"the verdict of task {item.task_id!a:.80} in run {item.run_id!a:.80}"
    return f"the note of task {item.task_id!a:.80} in run {item.run_id!a:.80}"


def rewrite(
    entries: Mapping[int, JournalEntry], *, conn_id: str, team: str | None = None, deadline_seconds: float = 8.0
) -> Recorded:
    """Replace UNPARSED rows by what they contain now, as if it had been stored from the start; or, with an error, none.

    A row keeps its notification id and its time, so another delivery by Zuora is still a duplicate.

    :param entries: the replacements, by the ids of the UNPARSED rows; a row that is not UNPARSED any more was replaced
        by another writer meanwhile, and is a duplicate
    :param conn_id: the connection of the rows
    :param team: the connection's team, where Airflow has teams
    :param deadline_seconds: how long to try
    :raises JournalMissing: the tables are not there
    :raises JournalUnavailable: the database is still locked, unreachable or broken at the deadline
    """
    return _in_transaction(lambda writer: writer.rewrite(entries), conn_id, team, deadline_seconds)


def rate(session: Session, *, conn_id: str, meter_id: str, session_id: str) -> None:
    """Update the best known status of a session, in the transaction of the caller."""
    _Writer(session, conn_id, None).rate(meter_id, session_id)


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
        except Exception:  # the event is durable, so a failing listener does not fail the call
            log.exception("A listener of asset events failed")
    return recorded


def _count(conn_id: str, rows: Sequence[Mapping[str, Any]], emitted: Sequence[str]) -> None:
    """Count durable rows and events, each once, regardless of retries and repeated reports.

    :param rows: the rows that were written
    :param emitted: addresses of the assets that got an event
    """
    for row in rows:
        if row["kind"] == EntryKind.STATUS_CHANGE:
            status = metrics.status_tag(row["status"])
            run_type = metrics.run_type_tag(row["run_type"])
            metrics.TRANSITIONS.add(conn_id=conn_id, evidence=row["source"], run_type=run_type, status=status)
        elif row["kind"] == EntryKind.UNPARSED:
            metrics.CALLOUTS_UNPARSED.add(conn_id=conn_id)
    for uri in emitted:
        metrics.ASSET_EVENTS.add(conn_id=conn_id, status=metrics.status_tag(read_asset_uri(uri).status))


class _Writer:
    """One transaction.

    :param session: the owner commits it and rolls it back
    """

    def __init__(self, session: Session, conn_id: str, team: str | None) -> None:
        self._session = session
        self._conn_id = conn_id
        self._team = team
        self._events: list[Event] = []
        self._rows: list[Mapping[str, Any]] = []
        self._row_ids: list[int] = []
        self._names: dict[str, ReportedName] = {}
        self._rewrites = False
        self.after: list[Callable[[], None]] = []

    def write(
        self, entries: Sequence[JournalEntry], verdicts: Sequence[TaskVerdict] = (), tasks: Sequence[TaskNote] = ()
    ) -> Recorded:
        # The same order in all writers, so that two of them with the same ids do not wait for each other.
        ordered = sorted(entries, key=lambda entry: (entry.notification_id or "", entry.observed_at))
        touched = set()
        polls = []
        new = 0
        unfit = []
        for entry in ordered:
            values = transition_values(entry, conn_id=self._conn_id, at=datetime.now(UTC))
            if values["kind"] != entry.kind:
                unfit.append(f"{_named(entry)}: {values['body']['error']}")
            if values["kind"] == EntryKind.POLL:
                polls.append((entry, values))
            elif row_id := self._add(values) or self._has_more(values):
                new += 1
                self._row_ids.append(row_id)
                touched |= self._take(values)
        concluded, refused = self._conclude(verdicts)
        refused += self._note(tasks)
        changed = self._refolded(touched, concluded)
        # A poll is compared with the stored sessions.
        new += sum(self._poll(*poll) for poll in polls)
        return replace(self._emitted(new, len(entries) - new, changed), refused=(*unfit, *refused))

    def write_refused(self, entry: JournalEntry, error: str) -> Recorded:
        """Store an entry that the database refuses as text."""
        values = transition_values(entry, conn_id=self._conn_id, at=datetime.now(UTC))
        values = refused_values(entry, values, error)
        row_id = self._add(values)
        if row_id:
            self._row_ids.append(row_id)
            self._take(values)
        return self._emitted(int(row_id is not None), int(row_id is None), ())

    def rewrite(self, entries: Mapping[int, JournalEntry]) -> Recorded:
        self._rewrites = True
        touched = set()
        new = 0
        for row_id, entry in sorted(entries.items()):
            values = transition_values(entry, conn_id=self._conn_id, at=datetime.now(UTC))
            if self._replace_unparsed(row_id, values):
                new += 1
                touched |= self._take(values)
        return self._emitted(new, len(entries) - new, self._refolded(touched))

    def _add(self, values: dict[str, Any]) -> int | None:
        """Insert the row of an entry, and return its id; ``None`` if there is one with its notification id."""
        key = add(self._session, TransitionRow, values)
        return key[0] if key else None

    def _take(self, values: Mapping[str, Any]) -> set[tuple[str, str]]:
        """Note a new row for the counts and its meter's name, and return the session that it is about, if any."""
        self._rows.append(values)
        meter_id, name = values["meter_id"], ReportedName(values["observed_at"], values["meter_name"])
        if meter_id and name.name and name >= self._names.get(meter_id, name):
            self._names[meter_id] = name
        is_change = values["kind"] == EntryKind.STATUS_CHANGE
        return {(values["meter_id"], values["session_id"])} if is_change else set()

    def _replace_unparsed(self, row_id: int, values: Mapping[str, Any]) -> bool:
        """Replace the content of an UNPARSED row, except its id and its time; return whether the row was UNPARSED."""
        new = {
            name: value for name, value in values.items() if name not in ("conn_id", "notification_id", "created_at")
        }
        unparsed = TransitionRow.id == row_id, TransitionRow.kind == EntryKind.UNPARSED
        statement = update(TransitionRow).where(*unparsed).values(**new)
        return bool(self._session.execute(statement).rowcount)  # type: ignore[attr-defined]

    def _has_more(self, values: dict[str, Any]) -> int | None:
        """Store a callout with a known notification id if its content differs; return the id of its row if so.

        The first delivery may be unparsed, and the settings corrected since. And that an id belongs to one change only
        is Zuora's promise: if it is broken, no change may get lost.
        """
        if values["kind"] != EntryKind.STATUS_CHANGE or values["source"] != Source.CALLOUT:
            return None
        names = ("meter_id", "session_id", "status", "previous_status")
        same_id_rows = select(TransitionRow.id, TransitionRow.kind, *(getattr(TransitionRow, name) for name in names))
        same_id = {name: values[name] for name in ("conn_id", "notification_id")}
        known = self._session.execute(same_id_rows.filter_by(**same_id)).one_or_none()
        edge = tuple(values[name] for name in names)
        if known is None or tuple(known[2:]) == edge:
            return None
        if known.kind == EntryKind.UNPARSED:
            return int(known.id) if self._replace_unparsed(known.id, values) else None
        digest = hashlib.sha256(json.dumps([values["notification_id"], *edge]).encode()).hexdigest()
        values["notification_id"] = f"other:{digest[:40]}"
        return self._add(values)

    def _refolded(
        self, reported: set[tuple[str, str]], concluded: AbstractSet[tuple[str, str]] = frozenset()
    ) -> tuple[SessionState, ...]:
        """Write the rows of sessions, and return the states of those with new reports of Zuora."""
        states = []
        for key in sorted(reported | concluded):
            if key in reported:
                states.append(self._refold(*key, concluded=key in concluded))
            else:
                self.rate(*key)
        return tuple(states)

    def _emitted(self, new: int, duplicates: int, changed: tuple[SessionState, ...]) -> Recorded:
        """Store the names of meters and pass the events to Airflow, as the last steps of each transaction."""
        store_names(self._session, self._conn_id, self._names)
        emitted, self.after = emit(self._events, conn_id=self._conn_id, team=self._team, session=self._session)
        self.after.append(partial(_count, self._conn_id, tuple(self._rows), emitted))
        row_ids = tuple(self._row_ids)
        return Recorded(new=new, duplicates=duplicates, changed=changed, emitted=emitted, row_ids=row_ids)

    # ---- sessions

    def _refold(self, meter_id: str, session_id: str, *, concluded: bool) -> SessionState:
        """Fold all reports of a session into its row, and collect the asset event that results.

        :param concluded: whether this transaction stored a verdict of the session
        """
        for _ in range(2):
            row = self._locked(meter_id, session_id)
            changes = transitions(self._session, self._conn_id, [(meter_id, session_id)])
            told = any(change.source is Source.HISTORY for change in changes)
            if told and self._supersede(meter_id, session_id):
                changes = transitions(self._session, self._conn_id, [(meter_id, session_id)])
            state = fold(changes)
            # Any other transaction stores a verdict together with its session's row.
            may_have = concluded or row is not None
            verdicts = verdicts_of(self._session, self._conn_id, meter_id, session_id) if may_have else []
            # Count how often the session reached this status. A status that it never left is announced once, even if
            # its reports arrive in another order or repeatedly; one that it left and reached again is announced again.
            arrival = departures(changes)[state.status] + 1
            emitted = dict(row.emitted) if row else {}
            reached = [*self._passed(state, changes), *([(arrival, state.transition)] if state.starts_dags else [])]
            news = [change for number, change in reached if _is_first(emitted, number, change)]
            # Announced before the status that came before was known.
            completed = (
                row is not None
                and not news
                and (row.status, row.previous_status) == (state.status, None)
                and state.previous_status is not None
                and row.emitted.get(state.status) == arrival
            )
            values = {
                **session_values(state, best_known(state, verdicts, changes)),
                "emitted": emitted,
                "revision": row.revision + 1 if row else 1,
                "updated_at": datetime.now(UTC),
            }
            if not self._put(row, meter_id, session_id, values):
                continue  # another writer inserted the row meanwhile, so there may be more to fold
            for change in [*news, *([state.transition] if completed else [])]:
                certain = not (change is state.transition and state.conflict)
                extra = session_result(change, evidence=change.source, certain=certain, mediation_conn_id=self._conn_id)
                self._events.append(Event.of(change, extra, announced=completed))
            return state
        raise JournalUnavailable(f"the row of session {session_id} was deleted")

    def _passed(
        self, state: SessionState, changes: Sequence[SessionTransition]
    ) -> Iterator[tuple[int, SessionTransition]]:
        """Yield what was just received of statuses that the session has left, with the number of each arrival.

        Only what the callout history and unparsed callouts report: these come after the fact, often several at once.
        A callout of a status that was left is late.
        """
        new = {
            (row["status"], row["previous_status"], row["observed_at"])
            for row in self._rows
            if (row["meter_id"], row["session_id"]) == (state.meter_id, state.session_id)
            and (row["source"] == Source.HISTORY or self._rewrites)
        }
        if not new or state.run_type not in set(RunType):
            return
        for number, change in passed(changes, state.status):
            if (change.status, change.previous_status, change.observed_at) in new:
                yield number, replace(change, run_type=state.run_type)

    def _supersede(self, meter_id: str, session_id: str) -> bool:
        """Let new callouts take the place of what the callout history had of the same changes; return whether any did.

        Otherwise a round through a cycle of statuses would count twice.
        """
        of_session = {"conn_id": self._conn_id, "meter_id": meter_id, "session_id": session_id}
        history = select(TransitionRow).filter_by(**of_session, source=str(Source.HISTORY))
        known = sorted(self._session.scalars(history), key=lambda row: row.observed_at)
        superseded = False
        for came in sorted(self._rows, key=lambda row: row["observed_at"]):
            if not came.items() >= {**of_session, "source": Source.CALLOUT}.items() or came["notification_id"] is None:
                continue
            for told in known:
                same = (told.status, told.previous_status) == (came["status"], came["previous_status"])
                if same and awaits(told.body, came["observed_at"]):
                    known.remove(told)
                    self._session.execute(delete(TransitionRow).where(TransitionRow.id == told.id))
                    own = update(TransitionRow).filter_by(
                        conn_id=self._conn_id, notification_id=came["notification_id"]
                    )
                    body = {**came["body"], BODY_KEY: told.body[BODY_KEY]}
                    self._session.execute(own.values(observed_at=told.observed_at, body=body))
                    superseded = True
                    break
        return superseded

    def _put(self, row: Row[Any] | None, meter_id: str, session_id: str, values: dict[str, Any]) -> bool:
        """Write the row of a session, and return whether no other writer inserted it before.

        :param row: the locked row as it is; ``None`` if there was none
        """
        if row is None:
            return add(self._session, ListedRow, {**values, **self._key(meter_id, session_id)}) is not None
        new = {name: value for name, value in values.items() if value != row._mapping[name]}
        if new:
            statement = update(ListedRow).where(ListedRow.id == row.id).values(**new)
            self._session.execute(statement.execution_options(synchronize_session=False))
        return True

    # ---- what tasks concluded

    def _conclude(self, verdicts: Sequence[TaskVerdict]) -> tuple[set[tuple[str, str]], list[str]]:
        """Store verdicts; return the sessions that they name, and a sentence for each that is not stored."""
        stored = store_verdicts(self._session, self._conn_id, verdicts, at=datetime.now(UTC))
        for verdict in sorted(stored.new, key=lambda each: each.wait_id):
            store_end_status(self._session, self._conn_id, verdict)
        named = {(each.meter_id, each.session_id) for each in stored.new if each.session_id is not None}
        return named, stored.refused

    def _note(self, tasks: Sequence[TaskNote]) -> list[str]:
        """Store the notes of tasks; return a sentence for each that is not stored."""
        refused = []
        for note in sorted(tasks, key=lambda each: each.id):
            if reason := why_not_note(note):
                refused.append(f"{_named(note)}: {reason}")
            else:
                store_note(self._session, self._conn_id, note)
        return refused

    def rate(self, meter_id: str, session_id: str) -> None:
        """Write only the best known status of a session, whose reports have not changed."""
        for _ in range(2):
            row = self._locked(meter_id, session_id)
            changes = transitions(self._session, self._conn_id, [(meter_id, session_id)])
            verdicts = verdicts_of(self._session, self._conn_id, meter_id, session_id)
            if not (changes or verdicts):
                return
            state = fold(changes) if changes else None
            values = best_values(best_known(state, verdicts, changes), state)
            if row is None:
                values |= unreported_values(verdicts)
            if self._put(row, meter_id, session_id, values):
                return
        raise JournalUnavailable(f"the row of session {session_id} was deleted")

    def _key(self, meter_id: str, session_id: str) -> dict[str, str]:
        return {"conn_id": self._conn_id, "meter_id": meter_id, "session_id": session_id}

    def _locked(self, meter_id: str, session_id: str) -> Row[Any] | None:
        return self._session.execute(_LOCKED, self._key(meter_id, session_id)).one_or_none()

    # ---- polls

    def _poll(self, entry: JournalEntry, values: dict[str, Any]) -> bool:
        """Store a poll that shows another status than the poll before it; return whether it was stored."""
        # Polls that drive are compared among themselves: otherwise a task that saw the status first would suppress
        # their event.
        series = POLL_DRIVES if entry.drives else POLL_ONLY
        last = self._last_poll(values["meter_id"], series)
        if last is not None and (last.status == values["status"] or last.observed_at >= entry.observed_at):
            return False
        # The id contains the poll before: of two polls that follow the same one, only the first is stored.
        values["notification_id"] = f"{series}:{values['meter_id']}:{last.id if last else 0}"
        values["previous_status"] = last.status if last else None
        if not add(self._session, TransitionRow, values):
            return False
        if entry.drives and last is not None:
            self._drive(entry, last)
        return True

    def _last_poll(self, meter_id: str, series: str, *which: ColumnElement[bool]) -> TransitionRow | None:
        polls = select(TransitionRow).filter_by(conn_id=self._conn_id, meter_id=meter_id, kind=str(EntryKind.POLL))
        return self._session.scalar(
            polls.where(TransitionRow.session_id.is_(None), TransitionRow.notification_id.startswith(series), *which)
            # By the index of sessions: ordered by id alone, PostgreSQL would scan the whole table.
            .order_by(TransitionRow.session_id.desc(), TransitionRow.id.desc())
            .limit(1)
        )

    def _drive(self, entry: JournalEntry, last: TransitionRow) -> None:
        """Announce what a poll shows, if no callout did: for the one live session, else without a session.

        :param last: the poll before it, which showed another status
        """
        transition = entry.transition
        if transition is None:
            return
        run_type = run_type_shown(transition.status, last.status)
        of_meter = select(SessionRow).filter_by(conn_id=self._conn_id, meter_id=transition.meter_id)
        of_type = SessionRow.run_type == str(run_type)
        # A session that was live when a poll last showed an end ended then, or its status is unknown since.
        ended = self._last_poll(
            transition.meter_id,
            POLL_DRIVES,
            TransitionRow.status.in_(ENDS_BY_POLL[run_type]),
            TransitionRow.id <= last.id,
        )
        rows = self._session.scalars(
            # The poll may also show a session of unknown run type.
            of_meter.where(SessionRow.terminal.is_(False), or_(of_type, SessionRow.run_type.not_in(RunType)))
            .where(SessionRow.begun_at > ended.observed_at if ended else true())
            .order_by(SessionRow.session_id)
            # A concurrent callout must see what this announces, and the other way round.
            .with_for_update()
            .execution_options(populate_existing=True)
        ).all()
        # A session that was reported in this status since the poll before has been announced.
        known = of_meter.where(of_type, SessionRow.status == transition.status, SessionRow.ambiguous.is_(False))
        known = known.where(SessionRow.last_observed_at >= last.observed_at)
        if self._session.scalar(known.limit(1)) is not None:
            return
        live = [row for row in rows if not ANY_TERMINAL & row.emitted.keys()]
        key = f"poll-{transition.meter_id}-{transition.status}-{entry.observed_at:%Y%m%dT%H%M%S.%fZ}"
        shown = replace(transition, run_type=run_type)
        extra = session_result(shown, evidence=entry.source, certain=False, mediation_conn_id=self._conn_id)
        if len(live) == 1 and live[0].run_type == run_type:
            (row,) = live
            if row.emitted.get(transition.status, 0):
                return
            row.emitted = {**row.emitted, transition.status: 1}
            # A session's event is searched around the time of the session's row.
            row.updated_at = datetime.now(UTC)
            key = extra["session_id"] = row.session_id
        self._events.append(
            Event(
                meter_id=transition.meter_id,
                status=transition.status,
                run_type=run_type,
                partition_key=key,
                extra=extra,
            )
        )


def _is_first(emitted: dict[str, int], number: int, change: SessionTransition) -> bool:
    """Return whether an arrival was not announced yet, and count it.

    :param emitted: how many arrivals at each status were announced
    :param number: how often the session has reached the status
    """
    known = emitted.get(change.status, 0)
    emitted[change.status] = max(known, number)
    return known < number


@dataclass(frozen=True, slots=True)
class ReparseResult:
    """The result for one unparsed callout.

    :param observed_at: when the callout was received
    :param entry: its entry; ``None``: it still cannot be parsed
    :param error: why not
    """

    observed_at: datetime
    entry: JournalEntry | None
    error: str = ""


def reparse(
    settings: CalloutSettings, *, team: str | None = None, dry_run: bool = False, row_id: int | None = None
) -> Iterator[ReparseResult]:
    """Parse the unparsed callouts of a connection again, the oldest first, and yield each when it is durable.

    :param settings: of the connection
    :param team: the connection's team, where Airflow has teams
    :param dry_run: change nothing
    :param row_id: only the callout of this row
    :raises JournalUnavailable: the journal cannot be read or written; results yielded before are durable
    """
    after = 0
    while rows := _unparsed(settings.conn_id, after, row_id):
        after = rows[-1].id
        entries = {row.id: read_again(settings, row.body, row.observed_at) for row in rows}
        readable = {
            row_id: entry
            for row_id, entry in entries.items()
            if entry is not None and entry.kind is not EntryKind.UNPARSED
        }
        if readable and not dry_run:
            rewrite(readable, conn_id=settings.conn_id, team=team, deadline_seconds=_DEADLINE_SECONDS)
        for row in rows:
            error = "" if row.id in readable else str((entries[row.id] or row).body.get("error"))
            yield ReparseResult(row.observed_at, readable.get(row.id), error)


def _unparsed(conn_id: str, after: int, row_id: int | None) -> list[TransitionRow]:
    which = true() if row_id is None else TransitionRow.id == row_id
    rows = (
        select(TransitionRow)
        .where(TransitionRow.conn_id == conn_id, TransitionRow.kind == EntryKind.UNPARSED, TransitionRow.id > after)
        .where(which)
        .order_by(TransitionRow.id)
        .limit(_BATCH)
    )
    return read(lambda session: list(session.scalars(rows)))
