"""Zuora's callout history in virtual time, and the API server with its journal in memory, as a reader sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_mediation_provider.protocol.callouts.cursor import HistoryCursor
from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.maintenance import (
    HISTORY_PATH,
    RECONCILE_PATH,
    HistoryReply,
    HistoryRequest,
    ReconcileReply,
    ReconcileRequest,
    missing,
)
from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState, fold
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError, TransientError
from airflow_mediation_provider.protocol.zuora.replies import Page
from airflow_mediation_provider.tasks.maintenance import AskJournal, HistoryReader
from tests.unit.virtual import EPOCH, Clock

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
    from airflow_mediation_provider.protocol.zuora.errors import MediationError

ALONE = callout_settings("zuora", {})
LOOP = ["INITIALIZING", "RUNNING", "PAUSED", "RUNNING", "PAUSED", "RUNNING", "COMPLETED"]


@dataclass
class Tenant:
    """Zuora's callout history: each record appears some time after the attempt that it is of."""

    clock: Clock
    offset: timedelta = timedelta()
    late: float = 0.0
    records: list[tuple[float, float, dict[str, Any]]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    refuses: MediationError | None = None

    def callout(self, at: float, session: str, before: str | None, status: str, *, retries: int = 0) -> None:
        """Let a callout fail at an attempt and at each retry, half an hour apart."""
        fields = {"meterId": "1", "sessionId": session, "status": status, "previousStatus": before or ""}
        for number in range(retries + 1):
            attempt = at + number * 1800
            created = EPOCH + timedelta(seconds=int(attempt)) + self.offset
            record = {
                "attemptedNum": number + 1,
                "createTime": f"{created:%Y-%m-%dT%H:%M:%S}",
                "eventCategory": "user.notification:change",
                "eventContext": fields,
                "notification": "status",
                "requestUrl": "https://nowhere.example.com/",
                "responseCode": -1 if number < retries or retries else 404,
            }
            self.records.append((attempt, attempt + self.late, record))

    def walk(self, session: str, begin: float, step: float, walk: list[str], *, retries: int = 0) -> None:
        for number, status in enumerate(walk):
            before = walk[number - 1] if number else None
            self.callout(begin + number * step, session, before, status, retries=retries)

    def page(self, call: Any) -> Page:
        query = dict(call.query)
        self.asked.append(query)
        if self.refuses is not None:
            raise self.refuses
        start, end = (query.get(name) for name in ("startTime", "endTime"))
        found = [
            record
            for _, appears, record in sorted(self.records, key=lambda each: -each[0])
            if appears <= self.clock.seconds
            and record["createTime"] >= start
            and (end is None or record["createTime"] <= end)
        ]
        number, size = int(query["page"]), int(query["pageSize"])
        return Page(found[(number - 1) * size : number * size], "more" if number * size < len(found) else None)


@dataclass
class Journal:
    """The API server with its journal: the cursor, and each report that it stored."""

    clock: Clock
    cursor: HistoryCursor = field(default_factory=lambda: HistoryCursor(read_to=EPOCH))
    revision: int = 0
    rows: list[JournalEntry] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    trouble: list[tuple[str, bool]] = field(default_factory=list)
    wait: float = 0.0

    def answer(self, path: str, body: bytes) -> bytes:
        if path == RECONCILE_PATH:
            return self._compare(ReconcileRequest.from_bytes(body))
        assert path == HISTORY_PATH
        asked = HistoryRequest.from_bytes(body)
        if asked.revision == self.revision:
            if asked.cursor is not None:
                self.cursor, self.revision = asked.cursor, self.revision + 1
            self.trouble.append((asked.trouble, asked.lasting))
        return HistoryReply(cursor=self.cursor, revision=self.revision, wait=self.wait).to_bytes()

    def _compare(self, request: ReconcileRequest) -> bytes:
        self.compared.append(len(request.entries))
        known = [row.transition for row in self.rows if row.transition]
        lost = missing(request.entries, known, continuous=request.continuous)
        lost = [each for each in lost if request.before is None or each.observed_at < request.before]
        self.rows += lost
        return ReconcileReply(missing=tuple(str(each.notification_id) for each in lost), open=()).to_bytes()

    def state(self, session: str) -> SessionState:
        return fold([row.transition for row in self.rows if row.transition and row.session_id == session])

    def changes(self, session: str) -> list[str]:
        rows = sorted((row for row in self.rows if row.session_id == session), key=lambda row: row.observed_at)
        return [row.transition.status for row in rows if row.transition]


class World:
    def __init__(self, **tenant: Any) -> None:
        self.clock = Clock()
        self.tenant = Tenant(self.clock, **tenant)
        self.journal = Journal(self.clock)
        self.lines: list[str] = []

    def reader(self, seconds: float = 60.0) -> HistoryReader:
        return HistoryReader(seconds, now=self.clock.now, tell=self.lines.append)

    def read(self, reader: HistoryReader, settings: Any = ALONE, *, killed_before: type | None = None) -> float:
        """Take one turn; or be killed before a message of some type is sent."""
        steps = reader.read(settings)
        try:
            step = next(steps)
            while True:
                if isinstance(step, AskJournal):
                    if killed_before is type(step.message) and getattr(step.message, "revision", 0) is not None:
                        steps.close()
                        return 0.0
                    step = steps.send(self.journal.answer(step.path, step.message.to_bytes()))
                    continue
                try:
                    page = self.tenant.page(step)
                except (TransientError, MisconfigurationError) as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(page)
        except StopIteration as done:
            return float(done.value)

    def read_until(self, seconds: float, reader: HistoryReader | None = None, settings: Any = ALONE) -> None:
        reader = reader or self.reader()
        while self.clock.seconds < seconds:
            self.clock.sleep(max(self.read(reader, settings), 1.0))
