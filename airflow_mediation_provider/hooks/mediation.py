"""MediationHook and MediationAsyncHook: Zuora Mediation's REST API behind an Airflow connection.

Both have the same methods with the same arguments: those of the calls in ``protocol.api``, ``protocol.audit`` and
``protocol.history``, where they are documented. A method carries its call out by ``protocol.exchange``; the two hooks
differ in how they send, sleep and wait, and in nothing else. They raise the errors of ``protocol.errors`` only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_mediation_provider.hooks import calls
from airflow_mediation_provider.hooks.methods import async_entries, async_method, entries, method
from airflow_mediation_provider.hooks.settings import Settings, settings_of
from airflow_mediation_provider.hooks.tokens import TenantTokens, TokenFlight, tokens_of
from airflow_mediation_provider.hooks.transport import AsyncTransport, SyncTransport, check_certificates
from airflow_mediation_provider.protocol import api, audit, history
from airflow_mediation_provider.protocol.errors import MediationError, MisconfigurationError, TransientError
from airflow_mediation_provider.protocol.exchange import (
    Outcome,
    Peer,
    Send,
    Sleep,
    Step,
    exchange,
    legal_track_id,
    obtain_token,
)
from airflow_mediation_provider.protocol.probe import judge_probe

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.api import Call

T = TypeVar("T")
Flow = Generator[Step, Outcome, T]


class _ConnectionHook(BaseHook):
    """What both hooks are: a connection, a track id, a number of attempts.

    :param mediation_conn_id: the Airflow connection, of type ``mediation``
    :param track_id: sent as ``Zuora-Track-Id`` (made legal), to find the calls at Zuora; in a task, the task instance
    :param attempts: how often a call is tried in all while the trouble passes by itself; 1: once
    :param settings: the connection, where it was looked up and checked already
    """

    conn_name_attr = "mediation_conn_id"
    default_conn_name = "mediation_default"
    conn_type = "mediation"
    hook_name = "Zuora Mediation"

    def __init__(
        self,
        mediation_conn_id: str = default_conn_name,
        *,
        track_id: str | None = None,
        attempts: int = 5,
        settings: Settings | None = None,
    ) -> None:
        super().__init__()
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {attempts}")
        self.mediation_conn_id = mediation_conn_id
        self.track_id = track_id
        self.attempts = attempts
        self._settings = settings

    def _tokens(self, settings: Settings) -> TenantTokens:
        return tokens_of(settings.base_url, settings.client_id, settings.client_secret)

    def _peer(self, settings: Settings) -> Peer:
        return settings.peer(self.track_id or _track_id_of_task())

    def _flow(self, call: Call[T], settings: Settings) -> Flow[T]:
        note = partial(calls.note, self.mediation_conn_id)
        return exchange(call, self._peer(settings), self._tokens(settings), attempts=self.attempts, note=note)

    def _no_connection(self, error: Exception) -> MediationError:
        name = f"Connection {self.mediation_conn_id!r}"
        if isinstance(error, AirflowNotFoundException):
            return MisconfigurationError(
                f"{name} was not found: define it, of type 'mediation', or see whether its definition is malformed or "
                f"your secrets backend is down (Airflow does not tell these apart)."
            )
        if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
            return MisconfigurationError(f"{name} may not be read by this task or triggerer: {error}")
        if isinstance(error, ValueError):
            return MisconfigurationError(f"{name} cannot be read: {error}")
        return TransientError(f"{name} could not be looked up: {error}")


def _track_id_of_task() -> str | None:
    """Return what names the running task instance to Zuora, or ``None`` outside of a task."""
    from airflow.sdk import get_current_context

    try:
        ti = get_current_context()["ti"]
    except RuntimeError:
        return None
    return legal_track_id(ti.dag_id, ti.task_id, ti.run_id, -1 if ti.map_index is None else ti.map_index, ti.try_number)


class MediationHook(_ConnectionHook):
    """Calls Zuora Mediation and waits for the answer. Can be used as a context manager; ``close()`` otherwise.

    :param mediation_conn_id: the Airflow connection, of type ``mediation``
    :param track_id: sent as ``Zuora-Track-Id`` (made legal), to find the calls at Zuora; in a task, the task instance
    :param attempts: how often a call is tried in all while the trouble passes by itself
    :param settings: the connection, where it was looked up and checked already
    """

    run_meter = method(api.run_meter)
    debug_meter = method(api.debug_meter)
    stop_meter = method(api.stop_meter)
    run_status = method(api.run_status)
    meter_summary = method(audit.meter_summary)
    audit_trail_entries = entries(audit.audit_trail_entries)
    create_export_job = method(audit.create_export_job)
    list_export_jobs = method(audit.list_export_jobs)
    export_download_url = method(audit.export_download_url)
    callout_history = entries(history.callout_history)

    _transport: SyncTransport | None = None

    @property
    def settings(self) -> Settings:
        """The checked connection, read once.

        :raises MisconfigurationError: it is missing or wrong; one sentence says what
        """
        if self._settings is None:
            try:
                connection = self.get_connection(self.mediation_conn_id)
            except Exception as error:
                raise self._no_connection(error) from error
            self._settings = settings_of(self.mediation_conn_id, connection)
        return self._settings

    def session_url(self, meter_id: str, session_id: str | None, run_id: str | None = None) -> str | None:
        """Return the address of a session's page by the connection's link template, ``None`` where it has none.

        :raises MisconfigurationError: the connection is missing or wrong, its link template included
        """
        return self.settings.session_url(meter_id, session_id, run_id)

    def test_connection(self) -> tuple[bool, str]:
        """Prove the connection, and say which of host, credentials, permission or Mediation itself is wrong.

        Zuora has no call that lists meters, so it asks for the status of a meter that cannot exist: the refusal
        tells. It always fetches a new token.

        :return: whether it works, and a sentence with what could not be proven
        """
        try:
            settings = self.settings
            tokens = self._tokens(settings)
            tokens.discard()
            self._drive(obtain_token(self._peer(settings), tokens))
        except MediationError as error:
            # The form has no name for the connection yet: Airflow tests it under an invented one.
            sentence = str(error).removeprefix(f"Connection {self.mediation_conn_id!r}: ")
            return False, sentence[:1].upper() + sentence[1:]
        try:
            self.carry_out(api.run_status(api.IMPOSSIBLE_METER_ID))
        except MediationError as error:
            return judge_probe(settings.peer().host, error)
        return judge_probe(settings.peer().host, None)

    def get_conn(self) -> SyncTransport:
        """Return what sends the requests, on the session of the HTTP provider's hook."""
        if self._transport is None:
            check_certificates(self.settings)
            self._transport = SyncTransport(self.settings)
        return self._transport

    def close(self) -> None:
        """Close the connections; the next call opens new ones, by the Airflow connection as it is then."""
        if self._transport is not None:
            self._transport.close()
        self._transport = self._settings = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def carry_out(self, call: Call[T]) -> T:
        """Carry out a call of ``protocol.api`` or its siblings, or one of your own; what the methods do."""
        try:
            return self._drive(self._flow(call, self.settings))
        except MisconfigurationError:
            # The connection may be put right while a long wait goes on: read it again the next time.
            self.close()
            raise

    def _drive(self, flow: Flow[T]) -> T:
        transport = self.get_conn()
        outcome: Outcome = None
        with closing(flow):
            try:
                while True:
                    step = flow.send(outcome)
                    outcome = None
                    if isinstance(step, Send):
                        outcome = transport.send(step.request)
                    elif isinstance(step, Sleep):
                        self.log.info(step.reason)
                        time.sleep(step.seconds)
                    elif isinstance(step.flight, TokenFlight):
                        step.flight.wait()
            except StopIteration as done:
                result: T = done.value
                return result


@dataclass
class _Bound:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    settings: Settings | None = None
    transport: AsyncTransport | None = None


class MediationAsyncHook(_ConnectionHook):
    """Calls Zuora Mediation from an event loop, over one session: ``async with hook``, or ``await hook.close()``.

    :param mediation_conn_id: the Airflow connection, of type ``mediation``
    :param track_id: sent as ``Zuora-Track-Id`` (made legal), to find the calls at Zuora; in a task, the task instance
    :param attempts: how often a call is tried in all while the trouble passes by itself
    :param settings: the connection, where it was looked up and checked already
    """

    run_meter = async_method(api.run_meter)
    debug_meter = async_method(api.debug_meter)
    stop_meter = async_method(api.stop_meter)
    run_status = async_method(api.run_status)
    meter_summary = async_method(audit.meter_summary)
    audit_trail_entries = async_entries(audit.audit_trail_entries)
    create_export_job = async_method(audit.create_export_job)
    list_export_jobs = async_method(audit.list_export_jobs)
    export_download_url = async_method(audit.export_download_url)
    callout_history = async_entries(history.callout_history)

    _bound: _Bound | None = None

    async def settings(self) -> Settings:
        """Return the checked connection, read once.

        :raises MisconfigurationError: it is missing or wrong; one sentence says what
        """
        return (await self._open())[0]

    async def session_url(self, meter_id: str, session_id: str | None, run_id: str | None = None) -> str | None:
        """Return the address of a session's page by the connection's link template, ``None`` where it has none.

        :raises MisconfigurationError: the connection is missing or wrong, its link template included
        """
        return (await self.settings()).session_url(meter_id, session_id, run_id)

    async def close(self) -> None:
        """Close the connections; the next call opens new ones, by the Airflow connection as it is then."""
        bound, self._bound = self._bound, None
        if bound is not None and bound.transport is not None:
            await bound.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _open(self) -> tuple[Settings, AsyncTransport]:
        loop = asyncio.get_running_loop()
        if self._bound is None or self._bound.loop is not loop:
            if self._bound is not None and self._bound.transport is not None:
                self._bound.transport.abandon()
            self._bound = _Bound(loop)
        bound = self._bound
        async with bound.lock:
            if bound.settings is None:
                bound.settings = await self._look_up()
            if bound.transport is not None and not bound.transport.serves(bound.settings):
                await bound.transport.close()
                bound.transport = None
            if bound.transport is None:
                try:
                    bound.transport = await AsyncTransport.open(bound.settings)
                except MisconfigurationError:
                    bound.settings = None  # to be read again: it may be put right while a long wait goes on
                    raise
            return bound.settings, bound.transport

    async def _look_up(self) -> Settings:
        from airflow.providers.common.compat.connection import get_async_connection

        try:
            connection = await get_async_connection(self.mediation_conn_id)
        except Exception as error:
            raise self._no_connection(error) from error
        return settings_of(self.mediation_conn_id, connection)

    async def carry_out(self, call: Call[T]) -> T:
        """Carry out a call of ``protocol.api`` or its siblings, or one of your own; what the methods do."""
        settings, transport = await self._open()
        try:
            return await self._drive(self._flow(call, settings), transport)
        except MisconfigurationError:
            # The connection may be put right while a long wait goes on: read it again the next time.
            if self._bound is not None and self._bound.settings is settings:
                self._bound.settings = None
            raise

    async def _drive(self, flow: Flow[T], transport: AsyncTransport) -> T:
        outcome: Outcome = None
        with closing(flow):
            try:
                while True:
                    step = flow.send(outcome)
                    outcome = None
                    if isinstance(step, Send):
                        outcome = await transport.send(step.request)
                    elif isinstance(step, Sleep):
                        self.log.info(step.reason)
                        await asyncio.sleep(step.seconds)
                    elif isinstance(step.flight, TokenFlight):
                        await step.flight.wait_async()
            except StopIteration as done:
                result: T = done.value
                return result
