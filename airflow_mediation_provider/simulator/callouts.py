"""Which callouts are due, what each attempt sends, and how it ends by Zuora's rules; no I/O.

Events come in, attempts are sent at their time, answers come back. A callout has succeeded with exactly 200; it is
repeated after 1xx, 403, 408, 429, 5xx and without an answer; every other answer ends it. A body that is not JSON is
never sent.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/notifications/callout-notification-overview
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Final

from airflow_mediation_provider.simulator import callout_events, callout_templates

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_mediation_provider.simulator.callout_config import CalloutConfig, DeliverySettings
    from airflow_mediation_provider.simulator.callout_events import Event
    from airflow_mediation_provider.simulator.clock import Clock
    from airflow_mediation_provider.simulator.engine import Engine
    from airflow_mediation_provider.simulator.event_log import EventLog
    from airflow_mediation_provider.simulator.sessions import SessionChange

INVALID_BODY: Final = -2000
NO_ANSWER: Final = -1  # Zuora: "negative"; the meaning of each number is not documented
_LOGGED: Final = 2000  # characters of an answer that the log keeps
_KEPT: Final = 60_000  # characters of an answer that Zuora keeps


@dataclass(frozen=True, slots=True)
class Answer:
    """How an attempt ended.

    :param code: HTTP status, negative where there was none
    :param content: the body of the answer
    :param error: why there was no answer
    """

    code: int
    content: str = ""
    error: str | None = None


@dataclass(slots=True, eq=False)
class Callout:
    """One callout that is being delivered, with all its attempts.

    :param id: its id in the callout history
    :param notification_id: the value of its header; ``None``: the header is left out
    :param copy: which of its event's callouts it is, from 1
    :param lost: whether none of its attempts arrives
    :param attempt: how many attempts there were, including the present one
    :param record: its record in the callout history
    """

    id: str
    notification_id: str | None
    config: CalloutConfig
    event: Event
    url: str
    body: str
    copy: int = 1
    lost: bool = False
    attempt: int = 0
    record: Record | None = None


@dataclass(slots=True, eq=False)
class Record:
    """A record of the callout history.

    :param id: the id for ``resend``
    :param at: since when it exists, seconds since the epoch
    :param attempt: the attempts up to then
    :param answer: how the last of them ended
    """

    id: str
    callout: Callout
    at: float
    attempt: int
    answer: Answer

    def to_dict(self) -> dict[str, Any]:
        """Return the record for the control API."""
        values = self.callout.event.values
        return {
            "id": self.id,
            "notification_id": self.callout.notification_id,
            "event": self.callout.event.kind,
            "meter_id": values.get("Meter.Id"),
            "session_id": values.get("MeterSession.Id"),
            "status": values.get("MeterSession.Status"),
            "attempts": self.attempt,
            "code": self.answer.code,
        }


@dataclass(frozen=True, slots=True)
class Attempt:
    """The request of one attempt.

    :param entry: ``seq`` of its log entry
    :param answer_lost: whether its answer gets lost
    """

    callout: Callout
    headers: dict[str, str]
    body: bytes
    delivery: DeliverySettings
    entry: int
    began: float
    answer_lost: bool


class Callouts:
    """The tenant's notifications: a queue of callouts, and their results.

    :param engine: its configuration has the notifications and the delivery settings
    """

    def __init__(self, engine: Engine, clock: Clock, log: EventLog) -> None:
        self._engine = engine
        self._clock = clock
        self._log = log
        self.on_schedule: Callable[[], None] = lambda: None
        self.reset()
        engine.observers.append(self.changed)

    def reset(self) -> None:
        """Delete all callouts; the answers to the ones being sent change nothing any more."""
        self.history: list[Record] = []
        self._queue: list[tuple[float, int, Callout]] = []
        self._order = itertools.count()
        self._under_way: set[Callout] = set()
        self._random = random.Random(self._engine.config.delivery.seed)  # noqa: S311 - mishaps, not secrets

    @property
    def pending(self) -> int:
        """Return how many callouts wait for an attempt or are in one."""
        return len(self._queue) + len(self._under_way)

    @property
    def concurrency(self) -> int:
        """Return how many attempts may be made at once."""
        return self._engine.config.delivery.concurrency

    # ---- events

    def changed(self, change: SessionChange) -> None:
        """Notify of a change of a session's status."""
        if self._engine.config.callouts:
            name = self._engine.meters[change.session.meter_id].config.name
            self.publish(callout_events.status_change(change, name))

    def publish(self, event: Event) -> int:
        """Queue the callouts of an event, and return how many those are."""
        before = len(self._queue)
        for config in self._engine.config.callouts:
            if config.active and _concerns(config, event):
                self._notify(config, event)
        self.on_schedule()
        return len(self._queue) - before

    def _notify(self, config: CalloutConfig, event: Event) -> None:
        chance, scale = self._random, self._engine.config.time_scale
        notification = uuid.uuid4().hex
        vanished = chance.random() < config.vanish
        url, body = callout_templates.address(config, event), callout_templates.render(config, event)
        for copy in range(1, chance.randint(*config.copies_range) + 1):
            ids = {"same": notification, "other": uuid.uuid4().hex, "none": None}
            callout = Callout(
                id=uuid.uuid4().hex,
                notification_id=ids[chance.choice(config.copy_ids)],
                config=config,
                event=event,
                url=url,
                body=body,
                copy=copy,
                lost=chance.random() < config.loss,
            )
            due = event.at + chance.random() * config.disorder * scale
            if vanished:
                self._log.add("callout", **_about(callout), code=None, outcome="vanished")
            elif not _is_json(body):
                self._record(callout, Answer(INVALID_BODY, error="the rendered body is not valid JSON"))
                self._log.add("callout", **_about(callout), code=INVALID_BODY, outcome="failed", final=True)
            else:
                self._enqueue(callout, due)

    def resend(self, callout: Callout) -> Callout:
        """Send a callout of the history once more, at once."""
        same = self._engine.config.delivery.resend_same_id
        # Authentication is that of the template as it is now, everything else is that of the history.
        now = next((c for c in self._engine.config.callouts if c.name == callout.config.name), callout.config)
        again = Callout(
            id=uuid.uuid4().hex,
            notification_id=callout.notification_id if same else uuid.uuid4().hex,
            config=now,
            event=callout.event,
            url=callout.url,
            body=callout.body,
            copy=callout.copy,
        )
        self._enqueue(again, self._clock.now())
        self.on_schedule()
        return again

    def _enqueue(self, callout: Callout, due: float) -> None:
        heapq.heappush(self._queue, (due, next(self._order), callout))

    # ---- attempts

    def next_due(self) -> float | None:
        """Return when the next attempt starts, seconds since the epoch."""
        return self._queue[0][0] if self._queue else None

    def begin(self) -> Attempt | None:
        """Start the attempt that is due, and return what it sends; ``None``: none is due."""
        due = self.next_due()
        if due is None or due > self._clock.now():
            return None
        callout = heapq.heappop(self._queue)[2]
        callout.attempt += 1
        self._under_way.add(callout)
        now = self._clock.now()
        request_id = uuid.uuid4().hex
        own = {
            "Date": format_datetime(datetime.fromtimestamp(now, UTC), usegmt=True),
            "Zuora-Request-Id": request_id,
            "X-Amzn-Trace-Id": f"Root=1-{int(now):08x}-{request_id[:24]}",
        }
        if callout.notification_id is not None:
            own["Zuora-Notification-Id"] = callout.notification_id
        config = callout.config
        headers = callout_templates.headers(config, callout.event, callout.body, own)
        shown = {**own, **({config.hmac_key: headers[config.hmac_key]} if config.hmac_secret else {})}
        entry = self._log.add(
            "callout",
            pending=True,
            **_about(callout),
            url=callout.url,
            request_id=request_id,
            headers=shown,
            body=callout.body,
            code=None,
            outcome=None,
            final=False,
        )
        lost = self._random.random() < config.lost_answers
        delivery = self._engine.config.delivery
        return Attempt(callout, headers, callout.body.encode(), delivery, entry, now, lost)

    def end(self, attempt: Attempt, answer: Answer) -> None:
        """End an attempt: it succeeded, is repeated later, or failed permanently."""
        callout, now = attempt.callout, self._clock.now()
        if callout not in self._under_way:
            return  # it started before a reset
        self._under_way.discard(callout)
        if attempt.answer_lost and answer.code > 0:
            answer = Answer(NO_ANSWER, error=f"the answer, {answer.code}, was lost")
        self._record(callout, answer)
        delivery = self._engine.config.delivery
        outcome, retry_at = "delivered", None
        if not _succeeded(answer, confirm=delivery.confirm):
            outcome = "failed"
            if callout.config.retry and callout.attempt < delivery.attempts and _retryable(answer, delivery):
                outcome, retry_at = "retried", now + delivery.interval * self._engine.config.time_scale
                self._enqueue(callout, retry_at)
                self.on_schedule()
        self._log.close(
            attempt.entry,
            code=answer.code,
            error=answer.error,
            response=answer.content[:_LOGGED],
            outcome=outcome,
            final=retry_at is None,
            retry_at=retry_at,
            seconds=round(now - attempt.began, 6),
        )

    def _record(self, callout: Callout, answer: Answer) -> None:
        kept, now = Answer(answer.code, answer.content[:_KEPT], answer.error), self._clock.now()
        if callout.record is not None and self._engine.config.delivery.history_of == "callout":
            callout.record.attempt, callout.record.answer = callout.attempt, kept
            return
        callout.record = Record(uuid.uuid4().hex, callout, now, callout.attempt, kept)
        self.history.append(callout.record)


def _concerns(config: CalloutConfig, event: Event) -> bool:
    values = event.values
    return (
        config.event == event.kind
        and (not config.meters or values.get("Meter.Id") in config.meters)
        and (not config.run_types or values.get("MeterSession.RunType") in config.run_types)
        and (not config.statuses or values.get("MeterSession.Status") in config.statuses)
    )


def _about(callout: Callout) -> dict[str, Any]:
    """Return the fields of a callout that each of its log entries has."""
    values = callout.event.values
    return {
        "callout": callout.config.name,
        "callout_id": callout.id,
        "notification_id": callout.notification_id,
        "event": callout.event.kind,
        "event_id": callout.event.id,
        "change": callout.event.change,
        "meter_id": values.get("Meter.Id"),
        "session_id": values.get("MeterSession.Id"),
        "run_type": values.get("MeterSession.RunType"),
        "previous_status": values.get("MeterSession.PreviousStatus"),
        "status": values.get("MeterSession.Status"),
        "copy": callout.copy,
        "lost": callout.lost,
        "attempt": callout.attempt,
    }


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _succeeded(answer: Answer, *, confirm: bool) -> bool:
    return answer.code == 200 and not (confirm and _denies(answer))


def _denies(answer: Answer) -> bool:
    try:
        return bool(json.loads(answer.content).get("success") is False)
    except (ValueError, AttributeError):
        return False


def _retryable(answer: Answer, delivery: DeliverySettings) -> bool:
    code = answer.code
    return (
        code < 200  # 1xx, and negative: no answer
        or code in (403, 408, 429)
        or 500 <= code < 600
        or (code == 200 and delivery.confirm)
        or (code == 401 and delivery.retry_unauthorized)
    )
