"""From Zuora's callout history into the journal: the reconciliation of one span, and the reader, which goes on reading.

A reconciliation finds what the journal lacks, and checks sessions without an end. It is the same for the command, which
has the database, and for the operator, which calls the API server. The reader has no I/O: a trigger and an operator
carry out its steps.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from airflow_mediation_provider.protocol.callouts.cursor import LEASE, OVERLAP, RETRY_SPAN
from airflow_mediation_provider.protocol.callouts.history import History, attempts_of, history_span, read_history
from airflow_mediation_provider.protocol.maintenance import (
    FAR,
    FURTHEST,
    HISTORY_PATH,
    RECONCILE_PATH,
    HistoryReply,
    HistoryRequest,
    ReconcileReply,
    ReconcileRequest,
    Reconciliation,
    repaired_line,
    stuck_line,
)
from airflow_mediation_provider.protocol.times import in_words, to_utc
from airflow_mediation_provider.protocol.zuora.errors import MediationError, MisconfigurationError, is_final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from datetime import tzinfo

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.callouts.cursor import HistoryCursor, HistorySpan
    from airflow_mediation_provider.protocol.callouts.settings import CalloutSettings
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
    from airflow_mediation_provider.protocol.zuora.replies import Json, Page
    from airflow_mediation_provider.protocol.zuora.requests import Call

_SECONDS_BETWEEN_LINES: Final = 5.0

# Records may lie around the requested span: because of further attempts, and of clocks.
_MARGIN: Final = timedelta(hours=1)
# Entries of one request, more if one session has more: its changes are compared with each other.
_BATCH: Final = 100
# Lines of one kind that are printed one by one.
_MOST_LINES: Final = 100


class Progress:
    """Shows lines of progress, at most one every few seconds.

    :param show: shows a line
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._shown_at = time.monotonic()

    def report(self, line: str) -> None:
        """Show a line in any case."""
        self._show(line)
        self._shown_at = time.monotonic()

    def on_the_way(self, line: str) -> None:
        """Show a line if the last one is some seconds old."""
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_LINES:
            self.report(line)


class Journal(Protocol):
    """The journal: the database, or the API server in front of it."""

    def reconcile(self, request: ReconcileRequest) -> ReconcileReply:
        """Store what is missing, unless it is a dry run, and return it.

        :raises Exception: the journal could not be queried
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A span of callouts to reconcile.

    :param since: the start of the span of callouts
    :param until: its end
    :param event_category: only events of this category; the connection's by default. Without one, all callouts of the
        tenant are read
    :param open_for: check sessions that have not ended and had no update for this long; ``None``: none
    :param dry_run: change nothing
    """

    since: datetime
    until: datetime
    event_category: str | int | None = None
    open_for: timedelta | None = timedelta(hours=6)
    dry_run: bool = False


def reconcile(
    hook: MediationHook, settings: CalloutSettings, journal: Journal, task: Task, tell: Callable[[str], None]
) -> Reconciliation:
    """Carry out one pass.

    :param hook: calls Zuora
    :param settings: of the connection's callouts; they need not be enabled
    :param journal: stores and compares the entries
    :param tell: takes lines for the user: progress, missing changes, sessions that never end
    :raises MediationError: Zuora could not be read, or the span is so old that the journal may have been pruned
    """
    begin = to_utc("since", task.since)
    if not task.dry_run and datetime.now(UTC) - begin > FURTHEST:
        raise MisconfigurationError(
            f"The span starts at {in_words(begin)}, and {FURTHEST.days} days back is the limit: changes that were "
            "pruned from the journal would count as missing, and start Dags again. A dry run may go back further."
        )
    history = _read(hook, settings, task, tell)
    found = Reconciliation(
        dry_run=task.dry_run,
        records=history.records,
        told=len(history.entries),
        unreadable=history.unreadable,
        categories=history.categories,
    )
    progress = Progress(tell)
    for number, batch in _batches(history.entries):
        lost = set(journal.reconcile(ReconcileRequest(entries=tuple(batch), dry_run=task.dry_run)).missing)
        found.repaired += [entry for entry in batch if entry.notification_id in lost]
        progress.on_the_way(f"{number:,} of {len(history.entries):,} changes compared ...")
    found.repaired.sort(key=lambda entry: (entry.observed_at, entry.notification_id or ""))
    _report_some("Missing" if task.dry_run else "Added", map(repaired_line, found.repaired), tell)
    if task.open_for is not None:
        now = datetime.now(UTC)
        reply = journal.reconcile(ReconcileRequest(open_before=now - task.open_for))
        statuses = {meter_id: _status(hook, meter_id, tell) for meter_id in sorted({s.meter_id for s in reply.open})}
        found.stuck = [(state, statuses[state.meter_id]) for state in reply.open]
        _report_some("Open", (stuck_line(state, status, now) for state, status in found.stuck), tell)
    if len(found.categories) == 1 and task.event_category is None and history.foreign:
        tell(f"To read only these records, give the event category {next(iter(found.categories))!r}.")
    if task.event_category is not None and not found.records:
        tell(
            f"No record has the event category {task.event_category!r}, and nothing was repaired. If callouts were sent"
            " in this time, the category is wrong. Without a category all records are read."
        )
    tell(found.summary())
    return found


def _read(hook: MediationHook, settings: CalloutSettings, task: Task, tell: Callable[[str], None]) -> History:
    # Zuora takes and returns the tenant's own times. If no zone is configured, it may be any.
    margin = FAR if settings.chosen_timezone is None else _MARGIN
    since, until = to_utc("since", task.since) - margin, to_utc("until", task.until) + margin
    tell(f"Reading the callout history from {in_words(since)} to {in_words(until)}.")
    category = settings.event_category if task.event_category is None else task.event_category
    records = hook.callout_history(since, until, timezone=settings.timezone, event_category=category)
    return read_history(settings, _counted(records, tell), datetime.now(UTC))


def _counted(records: Iterable[Json], tell: Callable[[str], None]) -> Iterator[Json]:
    progress = Progress(tell)
    for number, record in enumerate(records, 1):
        yield record
        progress.on_the_way(f"{number:,} records read, up to {record.get('createTime')} ...")


def _batches(entries: list[JournalEntry]) -> Iterator[tuple[int, list[JournalEntry]]]:
    """Return batches, each with the number of entries so far; the entries of one session are never split."""
    sessions: dict[tuple[Any, Any], list[JournalEntry]] = defaultdict(list)
    for entry in entries:
        sessions[entry.meter_id, entry.session_id].append(entry)
    batch: list[JournalEntry] = []
    done = 0
    for changes in sessions.values():
        batch += changes
        if len(batch) >= _BATCH:
            done += len(batch)
            yield done, batch
            batch = []
    if batch:
        yield done + len(batch), batch


def _status(hook: MediationHook, meter_id: str, tell: Callable[[str], None]) -> str | None:
    """Return a meter's run status; if it cannot be read, the others still are."""
    try:
        return hook.run_status(meter_id)
    except MediationError as error:
        tell(f"The run status of meter {meter_id} cannot be read: {error}")
        return None


def _report_some(what: str, lines: Iterable[str], tell: Callable[[str], None]) -> None:
    for number, line in enumerate(lines):
        if number == _MOST_LINES:
            tell("... and more.")
            return
        tell(f"{what}: {line}.")


@dataclass(frozen=True, slots=True)
class AskJournal:
    """A step of the reader: send a message to the API server, and answer with the body of its reply."""

    path: str
    message: HistoryRequest | ReconcileRequest


class HistoryReader:
    """Reads the callout history of one connection again and again, without I/O.

    It keeps only which changes it has sent to the journal before, which saves requests.

    :param seconds: between two reads
    :param now: the wall clock
    :param tell: takes lines for the log
    """

    def __init__(self, seconds: float, *, now: Callable[[], datetime], tell: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._now = now
        self._tell = tell
        self._stored: frozenset[tuple[str | None, int, bool]] = frozenset()
        # What the last read has added to the journal; the operator returns it.
        self.added: list[JournalEntry] = []

    def read(self, settings: CalloutSettings) -> Generator[AskJournal | Call[Page], Any, float]:
        """Ask for the reader's turn, and read what is new; return the seconds until the next turn.

        They are at most the interval, or ``LEASE`` where that is longer, whatever the API server answers: it compares
        the clocks of several machines.

        Yields what is to be sent, and takes the body of the API server's reply, or Zuora's page. An error of Zuora is
        thrown into it: it is reported to the API server, and raised again.

        :param settings: of the connection, as they are now
        :raises MediationError: Zuora gave no good answer
        :raises ValueError: a reply of the API server is not valid
        """
        self.added = []
        reply = yield from _turn(HistoryRequest(seconds=self._seconds))
        if reply.wait > 0:
            return min(reply.wait, max(self._seconds, LEASE.total_seconds()))
        while True:
            cursor, revision = reply.cursor, reply.revision
            asked_at = self._now()
            span = cursor.span(cursor.zone(settings.chosen_timezone, asked_at), asked_at)
            try:
                records = yield from _records(span, settings.event_category)
            except MediationError as error:
                failed = HistoryRequest(
                    seconds=self._seconds, revision=revision, trouble=str(error), lasting=is_final(error)
                )
                yield from _turn(failed)
                raise
            after = cursor.learned(records, span, asked_at)
            zone, trouble = after.zone(settings.chosen_timezone, asked_at), ""
            if zone is not None:
                trouble = yield from self._store(settings, records, cursor, zone, asked_at)
                after = after.advanced(span, beside_callouts=settings.enabled)
            goes_on = span.end is not None
            request = HistoryRequest(
                seconds=self._seconds, revision=revision, cursor=after, goes_on=goes_on, trouble=trouble
            )
            reply = yield from _turn(request)
            # If another reader has moved the cursor, that one goes on.
            if not goes_on or reply.revision != revision + 1:
                return self._seconds

    def _store(
        self, settings: CalloutSettings, records: list[Json], cursor: HistoryCursor, zone: tzinfo, asked_at: datetime
    ) -> Generator[AskJournal, Any, str]:
        """Have the journal store the changes that it lacks, and return what is wrong with the records."""
        before = asked_at - RETRY_SPAN if settings.enabled else None
        history = read_history(settings, records, asked_at, zone=zone)
        begin = cursor.read_to - OVERLAP
        entries = [entry for entry in history.entries if max(at for at, _ in attempts_of(entry)) >= begin]
        marks: dict[tuple[Any, Any], set[tuple[str | None, int, bool]]] = defaultdict(set)
        for entry in entries:
            mark = entry.notification_id, len(attempts_of(entry)), before is None or entry.observed_at < before
            marks[entry.meter_id, entry.session_id].add(mark)
        # All changes of a session, if one is new: they are compared with each other.
        new = [entry for entry in entries if not marks[entry.meter_id, entry.session_id] <= self._stored]
        for _, batch in _batches(new):
            request = ReconcileRequest(entries=tuple(batch), continuous=True, before=before)
            lost = set(ReconcileReply.from_bytes((yield AskJournal(RECONCILE_PATH, request))).missing)
            added = [entry for entry in batch if entry.notification_id in lost]
            _report_some("Read", map(repaired_line, added), self._tell)
            self.added += added
        self._stored = frozenset(mark for each in marks.values() for mark in each)
        if not history.unreadable:
            return ""
        return (
            f"{history.unreadable} of {history.records} records of the callout history concern sessions, but lack the "
            "meter, session or status: put all fields into the notification's body, see docs/callouts.md"
        )


def _turn(request: HistoryRequest) -> Generator[AskJournal, Any, HistoryReply]:
    return HistoryReply.from_bytes((yield AskJournal(HISTORY_PATH, request)))


def _records(span: HistorySpan, event_category: str | None) -> Generator[Call[Page], Any, list[Json]]:
    records: list[Json] = []
    pages = history_span(span.start, span.end, event_category=event_category)
    call = next(pages, None)
    while call is not None:
        page = yield call
        records += page.entries
        try:
            call = pages.send(page)
        except StopIteration:
            call = None
    return records
