"""The feed for a task on a worker: one request per poke or report, which takes a few seconds at most.

Best effort: no failure here fails a task. Without an answer the wait continues with polls.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from airflow_mediation_provider import metrics
from airflow_mediation_provider.feed import flow
from airflow_mediation_provider.feed.flow import (
    TOO_SLOW,
    FeedUnavailableError,
    Outcome,
    SendSigned,
    ServerAddress,
    SignedCalls,
)
from airflow_mediation_provider.feed.reports import WaitingTask, ended, report, wait_id
from airflow_mediation_provider.hooks.api_usage import reported, unreported
from airflow_mediation_provider.protocol.sessions.journal_entry import JournalEntry
from airflow_mediation_provider.protocol.transition import Source
from airflow_mediation_provider.protocol.waits.feed_status import FeedMonitor, FeedStatus
from airflow_mediation_provider.protocol.waits.stop_policy import PollWatchdog
from airflow_mediation_provider.protocol.waits.wait import PollReading, SessionWait, WaitUpdate
from airflow_mediation_provider.protocol.wire import (
    FEED_PATH,
    FULL_LOOK_SECONDS,
    OBSERVATIONS_PATH,
    FeedReply,
    FeedRequest,
    MeterQuestion,
    Waits,
    observations_to_bytes,
)
from airflow_mediation_provider.protocol.zuora.errors import MediationError
from airflow_mediation_provider.protocol.zuora.flow import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import requests

    from airflow_mediation_provider.hooks.mediation import MediationHook
    from airflow_mediation_provider.protocol.sessions.lifecycle import SessionState
    from airflow_mediation_provider.protocol.sessions.verdict import TaskNote, TaskVerdict
    from airflow_mediation_provider.protocol.wire import WaitReport
    from airflow_mediation_provider.protocol.zuora.refusals import Reply


log = logging.getLogger(__name__)

CALL_SECONDS: Final = 5.0
"""Time limit of one call, with all its attempts."""
CONNECT_SECONDS: Final = 2.0
_server: Final = ServerAddress(rests=True)
"""The server's address, shared by all connections of this process."""


class WorkerFeedClient:
    """Calls the API server for one connection.

    :param hook: has the connection, whose client secret signs the calls
    :param seconds: time limit of one call
    """

    def __init__(self, hook: MediationHook, *, seconds: float = CALL_SECONDS) -> None:
        self._hook = hook
        self._seconds = seconds
        self._calls = SignedCalls(hook.mediation_conn_id, _server, candidates=flow.candidates)
        self._session: requests.Session | None = None
        self._trouble = ""

    @property
    def address(self) -> str | None:
        """The address of the API server; ``None`` while none was found."""
        found = _server.found
        return None if found is None else found.url

    @property
    def trouble(self) -> str:
        """Why the last call got no answer; empty after an answer."""
        return self._trouble

    def ask(self, question: FeedRequest) -> FeedReply | None:
        """Return the present state in the journal, ``None`` without an answer."""
        try:
            with reported(self._hook.mediation_conn_id) as calls:
                body = self.call(FEED_PATH, replace(question, calls=calls).to_bytes())
            return FeedReply.from_bytes(body)
        except (FeedUnavailableError, ValueError) as error:
            self._trouble = str(error)
            return None

    def observe(
        self,
        entries: Sequence[JournalEntry] = (),
        *,
        verdicts: Sequence[TaskVerdict] = (),
        tasks: Sequence[TaskNote] = (),
    ) -> bool:
        """Report observations, verdicts and notes, and return whether the journal has stored them."""
        try:
            with reported(self._hook.mediation_conn_id) as calls:
                self.call(OBSERVATIONS_PATH, observations_to_bytes(entries, calls, verdicts=verdicts, tasks=tasks))
        except (FeedUnavailableError, ValueError) as error:
            if str(error) != self._trouble:
                log.info("This task's report was not stored in the journal, which only the pages show: %s", error)
            self._trouble = str(error)
            return False
        return True

    def report_calls(self) -> None:
        """Report the calls to Zuora that no other report contained, if there are any, before the process ends.

        Best effort, and without an error: if the report fails, they are not counted.
        """
        if unreported(self._hook.mediation_conn_id):
            with suppress(FeedUnavailableError), reported(self._hook.mediation_conn_id) as calls:
                self.call(OBSERVATIONS_PATH, observations_to_bytes((), calls))

    def call(self, path: str, body: bytes) -> bytes:
        """Make one signed call, and return the body of its good answer.

        :param path: a path under ``/mediation``
        :raises FeedUnavailableError: no good answer now or a moment ago, or the connection is missing or wrong
        """
        outcome: Outcome = None
        with closing(self._calls.call(path, body, seconds=self._seconds)) as flow:
            try:
                while True:
                    step = flow.send(outcome)
                    outcome = self._send(step) if isinstance(step, SendSigned) else self._client_secret(anew=step.anew)
            except StopIteration as done:
                content: bytes = done.value
                return content

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _client_secret(self, *, anew: bool) -> str | Failure:
        if anew:
            self._hook.close()
        try:
            return self._hook.settings.client_secret
        except MediationError as error:
            return Failure(str(error))

    def _send(self, step: SendSigned) -> Reply | Failure:
        import requests

        from airflow_mediation_provider.hooks.fetching import fetch
        from airflow_mediation_provider.hooks.transport import KeptContext, proxy_for, trusting

        if self._session is None:
            kept = KeptContext()
            self._session = trusting(requests.Session(), lambda: kept.of(flow.server_trust()))
        request, seconds = step.request, step.seconds
        proxy = proxy_for(request.url, {}, trust_env=True)
        try:
            return fetch(
                self._session,
                request,
                seconds=seconds,
                connect=min(CONNECT_SECONDS, seconds),
                largest=flow.LARGEST_REPLY,
                allow_redirects=False,
                proxies={"all": proxy} if proxy else {},
            )
        except requests.Timeout:
            return TOO_SLOW
        except Exception as error:  # requests does not wrap all errors of urllib3 and of codecs
            if isinstance(error, requests.exceptions.SSLError):
                self.close()  # the certificates are read again, also those in a directory and of a proxy
            return flow.failure_of(error)


def forget_address() -> None:
    """Search the feed's address again at the next call."""
    _server.forget()


class WaitFeedClient(Protocol):
    """The part of ``WorkerFeedClient`` that this module needs."""

    @property
    def address(self) -> str | None:
        """The address of the feed."""

    @property
    def trouble(self) -> str:
        """Why the last call got no answer."""

    def ask(self, question: FeedRequest) -> FeedReply | None:
        """Return the present state in the journal, ``None`` without an answer."""

    def observe(
        self,
        entries: Sequence[JournalEntry] = (),
        *,
        verdicts: Sequence[TaskVerdict] = (),
        tasks: Sequence[TaskNote] = (),
    ) -> bool:
        """Report observations, and return whether the journal has stored them."""

    def report_calls(self) -> None:
        """Report the calls to Zuora that no other report contained."""


class WaitFeed:
    """The feed of one wait on a worker.

    :param caller: calls the API server
    :param conn_id: the Airflow connection
    :param ti: the running task instance
    :param cross_check: seconds between two polls, at least, while callouts are received
    :param now: the wall clock
    :param monotonic: a clock that is never set, in seconds
    """

    def __init__(
        self,
        caller: WaitFeedClient,
        conn_id: str,
        ti: Any,
        *,
        cross_check: float,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._caller = caller
        self._conn_id = conn_id
        self._task = WaitingTask.of(ti)
        self._cross_check = timedelta(seconds=cross_check)
        self._now = now
        self._status: FeedMonitor | None = None
        self._sessions: Sequence[SessionState] = ()
        self._reported_at: datetime | None = None
        self._named: str | None = None
        self._spared_until: datetime | None = None
        # Identifies this process as the one that started the wait.
        self.owner = secrets.token_hex(16)
        self._kept = False
        self._looks = PollWatchdog(monotonic=monotonic, now=now)
        self._answered = False
        # Whether what is received comes from the callout history alone.
        self.by_history = False

    @property
    def wait_id(self) -> str | None:
        """The id of the wait in its reports; ``None`` if the task is not known."""
        return None if self._task is None else wait_id(self._conn_id, self._task)

    @property
    def callouts(self) -> FeedStatus | None:
        """The feed status at the last poke; ``None`` before the first one."""
        return None if self._status is None else self._status.callouts

    @property
    def stalled(self) -> bool:
        """Whether this process paused for too long between two pokes, since it started the wait."""
        return self._looks.stalled(0.0)

    @property
    def read(self) -> bool:
        """Whether callouts are received, as far as is known."""
        return self._status is not None and self._status.callouts is FeedStatus.READ

    @property
    def others(self) -> Sequence[SessionState]:
        """The meter's sessions by callouts, to compare a poll with."""
        return self._sessions if self._status is not None and self._status.has_callouts else ()

    def ask(self, wait: SessionWait) -> WaitUpdate:
        """Query the feed, and pass its answer on to the wait."""
        self._answered = False
        if wait.polls_only:
            return WaitUpdate()
        now, condition = self._now(), wait.condition
        named = condition.session_id
        question = MeterQuestion(
            sessions=frozenset() if named is None else frozenset({named}),
            since=frozenset({wait.tracker.earliest}),
            windows=frozenset() if condition.window is None else frozenset({condition.window}),
        )
        reports = self._open(wait, now)
        reply = self._caller.ask(
            FeedRequest(meters={condition.meter_id: question}, full=True, waits=Waits(open=reports))
        )
        self._answered = reply is not None and reply.callouts
        self.by_history = reply is not None and reply.history is not None
        if reply is not None and reports:
            self._reported_at, self._named = now, wait.tracker.session_id
            self._kept = self._kept or reply.kept
        relied = self._rely(wait, reply, self._now())
        if reply is None or relied.result is not None:
            return relied
        self._sessions = tuple(state for state in reply.sessions if state.meter_id == condition.meter_id)
        received = wait.receive(reply.sessions, now)
        passed = wait.receive_window(reply.windows, self._sessions, now)
        return WaitUpdate((*relied.lines, *received.lines), passed.result)

    def poll_is_due(self, wait: SessionWait, poke_interval: float) -> bool:
        """Return whether the meter is to be polled: while callouts are received, only as a cross-check.

        :param poke_interval: seconds between two pokes of the task
        """
        if not self.read:
            return True
        now, polled_at = self._now(), wait.polled_at
        if self._spared_until is not None and now < self._spared_until:
            return False
        if polled_at is None:
            # Once the session is known, or the meter has had callouts, the meter's id and the connection need no proof.
            if not wait.tracker.reported and all(state.source is Source.RUN for state in self._sessions):
                return True
            polled_at = wait.created_at
        return now - polled_at >= max(self._cross_check, timedelta(seconds=poke_interval))

    def pause_polls(self, seconds: float) -> None:
        """Poll Zuora no more for so long, as it asked."""
        if seconds > 0:
            self._spared_until = self._now() + timedelta(seconds=seconds)

    def polled(self) -> None:
        """Note that Zuora answered a poll in this poke."""
        self._answered = True

    def plan(self, seconds: float) -> None:
        """Note the seconds to the next planned poke; a poke without an answer does not count."""
        if self._answered:
            self._looks.polled(seconds)

    def report_poll(self, wait: SessionWait, reading: PollReading) -> None:
        """Report a poll that shows something new to the journal."""
        if self._caller.address is None:
            return
        self._caller.observe([JournalEntry.of_poll(wait.condition.meter_id, reading)])

    def report_end(self, wait: SessionWait) -> None:
        """Report the end of the wait to the journal."""
        if self._reported_at is not None and self._task is not None and wait.result is not None:
            end = ended(self._conn_id, wait, self._task, self._now(), owner=self.owner, begins=not self._kept)
            self._caller.ask(FeedRequest(waits=Waits(ended=(end,))))
        self.report_calls()

    def report_calls(self) -> None:
        """Report the calls to Zuora: those that this process does not report before it ends are not counted."""
        self._caller.report_calls()

    def _open(self, wait: SessionWait, now: datetime) -> tuple[WaitReport, ...]:
        fresh = self._reported_at is not None and now - self._reported_at < timedelta(seconds=FULL_LOOK_SECONDS)
        if self._task is None or (fresh and self._kept and self._named == wait.tracker.session_id):
            return ()
        return (report(self._conn_id, wait, self._task, "worker", owner=self.owner, begins=not self._kept),)

    def _rely(self, wait: SessionWait, reply: FeedReply | None, now: datetime) -> WaitUpdate:
        """Pass the feed status on to the wait, which keeps the feed's state for later processes."""
        since = wait.feed_silent_since
        status = self._status = FeedMonitor(
            self._conn_id,
            cross_check=self._cross_check.total_seconds(),
            callouts=wait.callouts,
            silent_since=None if since is None else since.timestamp(),
            late=wait.late,
        )
        if reply is not None:
            wait.feed_silent_since = None
            grounds = status.answered(callouts=reply.callouts, address=self._caller.address, history=reply.history)
        else:
            wait.feed_silent_since = since or now
            grounds = status.silent(now.timestamp(), self._caller.trouble)
        if grounds is None:
            return WaitUpdate()
        if grounds.silent:
            metrics.FEED_LOST.add(conn_id=self._conn_id)
        return wait.rely_on(grounds)
