"""One pass of the repair: read the callout history, have the journal say what it lacks, look at what never ends.

The same for the command, which has the database, and for the operator, which asks the API server.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from airflow_mediation_provider.protocol.errors import MediationError, MisconfigurationError
from airflow_mediation_provider.protocol.history import History, read_history
from airflow_mediation_provider.protocol.pruning import SHORTEST_DAYS
from airflow_mediation_provider.protocol.reconcile import (
    FAR,
    ReconcileReply,
    ReconcileRequest,
    Reconciliation,
    repaired_line,
    stuck_line,
)
from airflow_mediation_provider.protocol.times import in_words, to_utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.callout_settings import CalloutSettings
    from airflow_mediation_provider.protocol.entry import Entry
    from airflow_mediation_provider.protocol.replies import Json

# Records lie around the span that is asked for: their attempts, and the clocks.
_MARGIN: Final = timedelta(hours=1)
# What is younger, with the margin around it, no prune has deleted.
_FURTHEST: Final = timedelta(days=SHORTEST_DAYS - 1)
# Entries of one request, unless one session has more: its changes are held against each other.
_BATCH: Final = 100
_SECONDS_BETWEEN_LINES: Final = 5.0
# Lines of one kind that are told one by one.
_MOST_LINES: Final = 100


class Journal(Protocol):
    """Who knows what came: the database, or the API server in front of it."""

    def reconcile(self, request: ReconcileRequest) -> ReconcileReply:
        """Put in what is missing, unless it is a dry run, and say what that was.

        :raises Exception: the journal could not be asked
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be reconciled.

    :param since: the begin of the span of callouts
    :param until: its end
    :param event_category: only events of this category; without one, all callouts of the tenant are read
    :param open_for: how long nothing must have come of a session that has not ended, for it to be looked at; ``None``:
        none is
    :param dry_run: change nothing
    """

    since: datetime
    until: datetime
    event_category: str | None = None
    open_for: timedelta | None = timedelta(hours=6)
    dry_run: bool = False


def reconcile(
    hook: MediationHook, settings: CalloutSettings, journal: Journal, task: Task, tell: Callable[[str], None]
) -> Reconciliation:
    """Carry out one pass.

    :param hook: asks Zuora
    :param settings: of the connection's callouts; they need not be enabled
    :param journal: knows what came
    :param tell: takes lines for the user: progress, what was missing, what never ends
    :raises MediationError: Zuora could not be asked, or the span is so old that the journal may have been pruned
    """
    begin = to_utc("since", task.since)
    if not task.dry_run and datetime.now(UTC) - begin > _FURTHEST:
        raise MisconfigurationError(
            f"The span begins at {in_words(begin)}, and {_FURTHEST.days} days back is the furthest: what was pruned "
            "from the journal would be taken for missing, and start DAGs once more. A dry run may go back further."
        )
    history = _read(hook, settings, task, tell)
    found = Reconciliation(
        dry_run=task.dry_run,
        records=history.records,
        told=len(history.entries),
        unreadable=history.unreadable,
        categories=history.categories,
    )
    pace = _Pace(tell)
    for number, batch in _batches(history.entries):
        lost = set(journal.reconcile(ReconcileRequest(entries=batch, dry_run=task.dry_run)).missing)
        found.repaired += [entry for entry in batch if entry.notification_id in lost]
        pace.say(f"{number:,} of {len(history.entries):,} changes compared ...")
    found.repaired.sort(key=lambda entry: (entry.observed_at, entry.notification_id or ""))
    _tell_some("Missing" if task.dry_run else "Put in", map(repaired_line, found.repaired), tell)
    if task.open_for is not None:
        now = datetime.now(UTC)
        reply = journal.reconcile(ReconcileRequest(open_before=now - task.open_for))
        statuses = {meter_id: _status(hook, meter_id, tell) for meter_id in sorted({s.meter_id for s in reply.open})}
        found.stuck = [(state, statuses[state.meter_id]) for state in reply.open]
        _tell_some("Open", (stuck_line(state, status, now) for state, status in found.stuck), tell)
    if len(found.categories) == 1 and task.event_category is None and history.foreign:
        tell(f"To read only these records, give the event category {next(iter(found.categories))!r}.")
    if task.event_category is not None and not found.records:
        tell(
            f"No record at all has the event category {task.event_category!r}: if callouts were sent in this time, its"
            " name is wrong, and nothing was repaired. Without a category all records are read."
        )
    tell(found.summary())
    return found


def _read(hook: MediationHook, settings: CalloutSettings, task: Task, tell: Callable[[str], None]) -> History:
    # Zuora takes and gives the tenant's own times. Where nobody named a zone, it may be any.
    margin = FAR if settings.timezone == "UTC" else _MARGIN
    since, until = to_utc("since", task.since) - margin, to_utc("until", task.until) + margin
    tell(f"Reading the callout history of {in_words(since)} to {in_words(until)}.")
    records = hook.callout_history(since, until, timezone=settings.timezone, event_category=task.event_category)
    return read_history(settings, _counted(records, tell), datetime.now(UTC))


def _counted(records: Iterable[Json], tell: Callable[[str], None]) -> Iterator[Json]:
    pace = _Pace(tell)
    for number, record in enumerate(records, 1):
        yield record
        pace.say(f"{number:,} records read, up to {record.get('createTime')} ...")


class _Pace:
    """Says how far it is, at most every few seconds."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._said_at = tell, time.monotonic()

    def say(self, line: str) -> None:
        if time.monotonic() - self._said_at >= _SECONDS_BETWEEN_LINES:
            self._tell(line)
            self._said_at = time.monotonic()


def _batches(entries: list[Entry]) -> Iterator[tuple[int, list[Entry]]]:
    """Return how many entries are done with each batch, and the batch; a session's are never taken apart."""
    sessions: dict[tuple[Any, Any], list[Entry]] = defaultdict(list)
    for entry in entries:
        sessions[entry.meter_id, entry.session_id].append(entry)
    batch: list[Entry] = []
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
    """Ask for a meter's run status; one that cannot be asked keeps nobody from the rest."""
    try:
        return hook.run_status(meter_id)
    except MediationError as error:
        tell(f"The run status of meter {meter_id} cannot be read: {error}")
        return None


def _tell_some(what: str, lines: Iterable[str], tell: Callable[[str], None]) -> None:
    for number, line in enumerate(lines):
        if number == _MOST_LINES:
            tell("... and more.")
            return
        tell(f"{what}: {line}.")
