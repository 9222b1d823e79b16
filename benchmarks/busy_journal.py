"""Fill the journal as years of operations do: several connections, many meters, all statuses, polls, waits.

Most sessions have ended successfully long ago. One connection has been silent for a year, one meter has a fifth of all
sessions, and some combinations of meter and status never occur: these are what makes a list slow.

  python -m benchmarks.busy_journal postgresql+psycopg2://...      a million sessions into a migrated database
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from airflow_mediation_provider.journal.receipts import MOST_ACCEPTED, MOST_REFUSED
from airflow_mediation_provider.journal.rows import transition_values
from airflow_mediation_provider.journal.tables import (
    AnswersRow,
    CallsRow,
    ReceiptRow,
    SessionRow,
    TransitionRow,
    WaitRow,
)
from airflow_mediation_provider.protocol.callouts.receipt import ACCEPTED, Proof, Receipt
from airflow_mediation_provider.protocol.sessions.journal_entry import EntryKind, JournalEntry
from airflow_mediation_provider.protocol.status import ANY_TERMINAL, RunType
from airflow_mediation_provider.protocol.transition import SessionTransition, Source
from benchmarks.journal_load import Stencil, chunks, load, load_stored, loading, vacuum, without_indexes
from benchmarks.journal_starts import TABLES, Starts, make_assets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

SESSIONS: Final = 1_000_000
LAST_DAY: Final = 2_000
AGE: Final = timedelta(days=730)
"""How long ago the oldest session began."""
PROD: Final = "zuora_prod"
EU: Final = "zuora_eu"
SANDBOX: Final = "zuora_sandbox"
SILENT: Final = "zuora_old"
"""A connection without any report in the newer half of the time."""
METERS: Final = {PROD: range(1000, 1140), EU: range(1140, 1190), SANDBOX: range(1190, 1199), SILENT: range(1199, 1200)}
BUSY: Final = "1000"
"""A meter with a fifth of all sessions; it has never been canceled or tested."""
POLLED: Final = "1001"
"""A meter that tasks have polled often, and that has as many polls as callouts."""
WAITED: Final = "wait_for_usage"
"""A Dag whose tasks wait for sessions."""
LIVE: Final = 5
"""The newest sessions are live: as many as Zuora runs at a time."""
LOST: Final = 25
"""The number of sessions that never end, the oldest one among them: their ends were never reported."""
_DETAILED: Final = 3
"""Each change was reported for the newest third of the sessions; for the older ones only the start and the end."""
_WALK: Final = ("INITIALIZING", "RUNNING", "USAGE_PUSHING", "PUSH_COMPLETED")
_LASTS: Final = timedelta(minutes=25)
_MODEL: Final = ("R-model", datetime(2000, 1, 1, tzinfo=UTC))
"""Id and start of the session from whose rows those of the others are made."""
_CONNECTIONS: Final = {meter: conn_id for conn_id, meters in METERS.items() for meter in meters}
_CHUNK: Final = 5_000
_64_BITS: Final = (1 << 64) - 1
_ROWS: Final = (TransitionRow, SessionRow, WaitRow, CallsRow, ReceiptRow, AnswersRow)
_JOURNAL: Final = tuple(table.__table__ for table in _ROWS)
_TABLES: Final = (*_JOURNAL, *TABLES)
_REPEATED: Final = 20
"""One of so many callouts was sent twice."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many sessions there are, when they started, and the properties of each.

    :param sessions: how many; the highest number is the newest
    :param last_day: those of them that started within the last day
    :param now: the time now
    :param first: the number of the oldest one; the row of session 0 is row 1
    """

    sessions: int
    last_day: int
    now: datetime
    first: int = 0

    @property
    def numbers(self) -> range:
        """Return the numbers of all sessions, the oldest first."""
        return range(self.first, self.first + self.sessions)

    @property
    def last(self) -> int:
        """Return the number of the newest session."""
        return self.numbers[-1]

    @property
    def lost(self) -> range:
        """Return the numbers of the sessions whose end was never reported, the oldest first."""
        return self.numbers[:: self.sessions // LOST]

    def goes_on(self, number: int) -> bool:
        """Return whether a session is live, or its end was never reported."""
        return number > self.last - LIVE or number in self.lost

    def is_awaited(self, number: int) -> bool:
        """Return whether a task waits for a session, or waited."""
        return number > self.last - self.sessions // 10 and number % 5 == 0

    def began(self, number: int) -> datetime:
        """Return when a session started: those of the last day evenly, and those before them evenly."""
        newest = self.now - _LASTS - timedelta(minutes=5)
        day, older = self.now - timedelta(hours=23), self.sessions - self.last_day
        place = number - self.first
        if place >= older:
            return day + (newest - day) * (place - older + 1) / self.last_day
        return day - timedelta(hours=1) - (AGE - timedelta(days=1)) * (older - place) / older

    def meter(self, number: int) -> tuple[str, str]:
        """Return connection and meter of a session."""
        if _drawn(number, 5) == 0:
            return PROD, BUSY
        meter = 1001 + _drawn(number, 199)
        if meter in METERS[SILENT] and number - self.first > self.sessions // 2:
            meter = 1001
        return _CONNECTIONS[meter], str(meter)

    def walk(self, number: int) -> tuple[RunType, tuple[str, ...]]:
        """Return run type and statuses of a session."""
        draw = _drawn(number, 1000)
        busy = self.meter(number)[1] == BUSY
        walk = _WALK if number > self.last - self.sessions // _DETAILED else _WALK[1:2]
        if self.goes_on(number):
            return RunType.NORMAL, walk[:2]
        if draw < 20 and not busy:
            return RunType.DEBUG, ("TESTING", "TESTING_FAILED" if draw < 5 else "TESTING_PASSED")
        if draw < 30 and not busy:
            return RunType.NORMAL, (*walk[:2], "CANCELED")
        return RunType.NORMAL, (*walk, "FAILED" if draw < 60 else "COMPLETED")

    def reports(self, number: int) -> list[SessionTransition]:
        """Return the reports of a session."""
        return _reports(self.meter(number)[1], *self.walk(number), session_of(number), self.began(number))

    def newest(self, conn_id: str, meter_id: str | None = None, status: str | None = None) -> int:
        """Return the number of the newest session of a connection, of a meter, that is in a status.

        :raises StopIteration: there is none
        """
        return next(
            number
            for number in reversed(self.numbers)
            if self.meter(number)[0] == conn_id
            and meter_id in (None, self.meter(number)[1])
            and status in (None, self.walk(number)[1][-1])
        )


def _reports(
    meter_id: str, run_type: RunType, steps: tuple[str, ...], session_id: str, began: datetime
) -> list[SessionTransition]:
    pause = _LASTS / max(len(steps) - 1, 1)
    return [
        SessionTransition(
            meter_id=meter_id,
            meter_name=f"Rated usage of {meter_id}",
            session_id=session_id,
            run_type=run_type,
            status=status,
            previous_status=steps[step - 1] if step else None,
            started_at=began,
            ended_at=began + _LASTS if status in ANY_TERMINAL else None,
            observed_at=began + pause * step,
            source=Source.CALLOUT,
            notification_id=f"{session_id}-{step}",
        )
        for step, status in enumerate(steps)
    ]


def session_of(number: int) -> str:
    """Return the id of a session by its number."""
    return f"R-{number:08d}"


def seed(address: str, sessions: int = SESSIONS, last_day: int = LAST_DAY) -> Plan:
    """Fill the empty journal of a migrated database, and Airflow's tables with the runs of the newest sessions.

    :param address: of the database
    :param sessions: all of them
    :param last_day: those that started within the last day
    """
    plan = Plan(sessions, last_day, datetime.now(UTC))
    with loading(address) as connection:
        assert not connection.scalar(select(func.count()).select_from(SessionRow)), "the journal is not empty"
        make_assets(connection, plan.now)
        with without_indexes(connection, _JOURNAL):
            _load_sessions(connection, plan)
            load(connection, WaitRow.__table__, [_unnamed_wait(number, plan.now) for number in range(5)])
            for polls in chunks(range(sessions // 50), _CHUNK):
                load(connection, TransitionRow.__table__, [_poll(number, sessions // 50, plan.now) for number in polls])
            unread = [_unread(number, plan.now) for number in range(min(sessions // 100, 1000))]
            load(connection, TransitionRow.__table__, unread)
            load(connection, CallsRow.__table__, list(_calls(plan.now)))
        _load_receipts(connection, plan)
    vacuum(address, _TABLES)
    return plan


def seed_burst(address: str, plan: Plan, sessions: int) -> Plan:
    """Add sessions that all started within the last day.

    :param address: of the database
    :param plan: of the existing sessions
    :param sessions: how many more
    """
    burst = Plan(sessions, sessions, datetime.now(UTC), first=plan.last + 1)
    with loading(address) as connection:
        _load_sessions(connection, burst)
    vacuum(address, _TABLES)
    return burst


def _load_sessions(connection: Connection, plan: Plan) -> None:
    starts = Starts(connection)

    @cache
    def stencil(conn_id: str, meter_id: str, run_type: RunType, steps: tuple[str, ...]) -> Stencil:
        return Stencil(_reports(meter_id, run_type, steps, *_MODEL), conn_id, connection.dialect)

    for numbers in chunks(plan.numbers, _CHUNK):
        changes, sessions = [], []
        for number in numbers:
            one = stencil(*plan.meter(number), *plan.walk(number))
            reports, row = one.rows(session_of(number), plan.began(number))
            changes += reports
            sessions.append(row)
        of_change, of_session = one.columns
        load_stored(connection, TransitionRow.__table__, of_change, changes)
        load_stored(connection, SessionRow.__table__, of_session, sessions)
        if numbers[-1] > plan.last - plan.sessions // 10:
            last = {number: (plan.meter(number)[0], plan.reports(number)[-1]) for number in numbers}
            starts.load(last.values())
            waits = [_wait(*reported, plan.now) for number, reported in last.items() if plan.is_awaited(number)]
            load(connection, WaitRow.__table__, waits)


def _drawn(number: int, of: int) -> int:
    """Return a pseudo-random number below ``of``, always the same for a number and ``of`` (SplitMix64)."""
    mixed = (number * 1_000_003 + of) * 0x9E37_79B9_7F4A_7C15 & _64_BITS
    mixed = (mixed ^ mixed >> 30) * 0xBF58_476D_1CE4_E5B9 & _64_BITS
    return (mixed ^ mixed >> 27) % of


def _wait(conn_id: str, last: SessionTransition, now: datetime) -> dict[str, Any]:
    """Return the wait of a task for a session, by the session's last report."""
    ended = last.observed_at if last.status in ANY_TERMINAL else None
    return {
        **_unnamed_wait(0, now),
        "conn_id": conn_id,
        "meter_id": last.meter_id,
        "session_id": last.session_id,
        "id": f"wait-{last.session_id}",
        "run_id": f"run-{last.session_id}",
        "created_at": last.started_at,
        "seen_at": ended or now,
        "ended_at": ended,
        "outcome": "met" if ended else None,
    }


def _unnamed_wait(number: int, now: datetime) -> dict[str, Any]:
    """Return the wait of a task for a session that does not exist yet."""
    return {
        "id": f"wait-unnamed-{number}",
        "conn_id": PROD,
        "meter_id": str(METERS[PROD][number]),
        "version": "1",
        "session_id": None,
        "condition": {"statuses": ["COMPLETED"], "fail_on": ["FAILED", "CANCELED"], "run_type": "NORMAL"},
        "dag_id": WAITED,
        "run_id": f"run-unnamed-{number}",
        "task_id": "wait",
        "map_index": -1,
        "try_number": 1,
        "mode": "triggerer",
        "created_at": now - timedelta(minutes=20),
        "until": now + timedelta(hours=5),
        "seen_at": now,
        "ended_at": None,
        "outcome": None,
    }


def _poll(number: int, polls: int, now: datetime) -> dict[str, Any]:
    """Return the row of a poll: half of them are of one meter, each with another status than the previous one."""
    meter_id = POLLED if number % 2 else str(METERS[PROD][2 + number // 2 % 20])
    at = now - timedelta(minutes=6) - AGE * (polls - 1 - number) / polls
    status, before = ("RUNNING", "COMPLETED")[:: 1 if number // 2 % 2 else -1]
    polled = SessionTransition(
        meter_id=meter_id, status=status, previous_status=before, observed_at=at, source=Source.POLL
    )
    entry = JournalEntry(
        kind=EntryKind.POLL, observed_at=at, source=Source.POLL, transition=polled, notification_id=f"poll:{number}"
    )
    return transition_values(entry, conn_id=PROD, at=at)


def _unread(number: int, now: datetime) -> dict[str, Any]:
    """Return the row of an unparsed callout: the template of the sandbox was wrong for a while."""
    at = now - timedelta(days=3, minutes=number)
    body = {"error": "it names no meter", "text": '{"session": "' + "x" * 300 + '"}'}
    entry = JournalEntry(kind=EntryKind.UNPARSED, observed_at=at, source=Source.CALLOUT, body=body)
    return transition_values(entry, conn_id=SANDBOX, at=at)


def _load_receipts(connection: Connection, plan: Plan) -> None:
    """Add as many receipts as the journal keeps, of the newest callouts, and their counts."""
    row = TransitionRow
    for conn_id in (PROD, EU, SANDBOX):
        newest = select(row.id, row.notification_id, row.created_at).where(
            row.conn_id == conn_id, row.kind == EntryKind.STATUS_CHANGE
        )
        added = connection.execute(newest.order_by(row.created_at.desc()).limit(MOST_ACCEPTED)).all()
        rows = []
        for number, (row_id, notification_id, at) in enumerate(added):
            repeated = number % _REPEATED == 0
            rows.append(_receipt(conn_id, at, 200, notification_id, None if repeated else row_id))
        rows += [_receipt(conn_id, plan.now - timedelta(hours=1, minutes=n), 401) for n in range(MOST_REFUSED)]
        for part in chunks(range(len(rows)), _CHUNK):
            load(connection, ReceiptRow.__table__, rows[part[0] : part[-1] + 1])
        hour = plan.now.replace(minute=0, second=0, microsecond=0)
        counts = {"conn_id": conn_id, "since_accepted": 0, "without_receipt": 0}
        answers = [
            {**counts, "hour": at, "last_at": at, "status": status, "answers": number}
            for at in (hour - timedelta(hours=number) for number in range(24 * 30))
            for status, number in ((200, 60), (401, 5))
        ]
        load(connection, AnswersRow.__table__, answers)


def _receipt(
    conn_id: str, at: datetime, status: int, notification_id: str | None = None, row_id: int | None = None
) -> dict[str, Any]:
    values = Receipt(
        conn_id=conn_id,
        received_at=at,
        status=status,
        milliseconds=12,
        proof=Proof.PROVEN if status == ACCEPTED else Proof.REFUSED,
        reason="" if status == ACCEPTED else "the signature is wrong",
        notification_id=notification_id,
        transition_id=row_id,
        headers={"content-type": "application/json", "x-mediation-signature": "*** (44 characters)"},
        body_size=300,
        body=None if status == ACCEPTED else "x" * 300,
    )
    return {**asdict(values), "proof": str(values.proof), "accepted": values.accepted}


def _calls(now: datetime) -> Iterator[dict[str, Any]]:
    """Return the number of calls to Zuora in each hour of a month."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    for conn_id in (PROD, EU, SANDBOX):
        for number in range(24 * 30):
            at = hour - timedelta(hours=number)
            yield {"conn_id": conn_id, "hour": at, "calls": 90, "limited": 0, "remaining": 900_000, "told_at": at}


def main() -> None:
    """Fill the database that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of a database with Airflow's tables and an empty journal")
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--last-day", type=int, default=LAST_DAY, help="sessions that started within the last day")
    arguments = parser.parse_args()
    began = time.perf_counter()
    seed(arguments.address, arguments.sessions, arguments.last_day)
    print(f"{arguments.sessions} sessions in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
