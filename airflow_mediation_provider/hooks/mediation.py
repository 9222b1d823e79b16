"""MediationHook and MediationAsyncHook: Zuora Mediation's REST API behind an Airflow connection.

Both have the same methods with the same arguments: those of the calls in ``protocol.api`` and ``protocol.audit``,
where they are documented. A method carries its call out by ``protocol.exchange``; the two hooks differ in how they
send, sleep and wait, and in nothing else. They raise the errors of ``protocol.errors`` only.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_mediation_provider.hooks.settings import Settings, settings_of
from airflow_mediation_provider.hooks.tokens import TenantTokens, TokenFlight, tokens_of
from airflow_mediation_provider.hooks.transport import AsyncTransport, SyncTransport
from airflow_mediation_provider.protocol import api, audit
from airflow_mediation_provider.protocol.errors import MediationError, MisconfigurationError, TransientError
from airflow_mediation_provider.protocol.exchange import Outcome, Send, Sleep, Step, exchange, obtain_token
from airflow_mediation_provider.protocol.probe import judge_probe

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.api import Call
    from airflow_mediation_provider.protocol.replies import Json, Page

P = ParamSpec("P")
T = TypeVar("T")
Flow = Generator[Step, Outcome, T]
Pages = Generator["Call[Page]", "Page", None]


def _method(build: Callable[P, Call[T]]) -> Callable[Concatenate[MediationHook, P], T]:
    """Make a method that carries out the call that ``build`` makes of its arguments."""

    def method(self: MediationHook, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._carry_out(build(*args, **kwargs))

    return _with_self(method, build)


def _async_method(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate[MediationAsyncHook, P], Coroutine[Any, Any, T]]:
    """Make a coroutine method that carries out the call that ``build`` makes of its arguments."""

    async def method(self: MediationAsyncHook, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._carry_out(build(*args, **kwargs))

    return _with_self(method, build)


def _entries(build: Callable[P, Pages]) -> Callable[Concatenate[MediationHook, P], Iterator[Json]]:
    """Make a method that yields the entries of all pages, asking for a page when it comes to it."""

    def method(self: MediationHook, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Json]:
        pages = build(*args, **kwargs)
        call = next(pages, None)
        while call is not None:
            page = self._carry_out(call)
            yield from page.entries
            call = _next_call(pages, page)

    return _with_self(method, build, "Iterator[Json]")


def _async_entries(build: Callable[P, Pages]) -> Callable[Concatenate[MediationAsyncHook, P], AsyncIterator[Json]]:
    """Make a method that yields the entries of all pages, asking for a page when it comes to it."""

    async def method(self: MediationAsyncHook, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Json]:
        pages = build(*args, **kwargs)
        call = next(pages, None)
        while call is not None:
            page = await self._carry_out(call)
            for entry in page.entries:
                yield entry
            call = _next_call(pages, page)

    return _with_self(method, build, "AsyncIterator[Json]")


def _next_call(pages: Pages, page: Page) -> Call[Page] | None:
    try:
        return pages.send(page)
    except StopIteration:
        return None


F = TypeVar("F", bound=Callable[..., Any])


def _with_self(method: F, build: Callable[..., Any], returns: str | None = None) -> F:
    """Give a method the name, words and signature of its call, with ``self`` in front, for help() and mocks."""
    functools.update_wrapper(method, build)
    call = inspect.signature(build)
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [me, *call.parameters.values()],
        return_annotation=returns or str(call.return_annotation).removeprefix("Call[").removesuffix("]"),
    )
    return method


class _ConnectionHook(BaseHook):
    """What both hooks are: a connection, a track id, a number of attempts.

    :param mediation_conn_id: the Airflow connection, of type ``mediation``
    :param track_id: sent as ``Zuora-Track-Id`` (made legal), to find the calls at Zuora; see
        :func:`~airflow_mediation_provider.protocol.exchange.legal_track_id`
    :param attempts: how often a call is tried in all while the trouble passes by itself; 1: once
    """

    conn_name_attr = "mediation_conn_id"
    default_conn_name = "mediation_default"
    conn_type = "mediation"
    hook_name = "Zuora Mediation"

    def __init__(
        self, mediation_conn_id: str = default_conn_name, *, track_id: str | None = None, attempts: int = 5
    ) -> None:
        super().__init__()
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {attempts}")
        self.mediation_conn_id = mediation_conn_id
        self.track_id = track_id
        self.attempts = attempts

    def _tokens(self, settings: Settings) -> TenantTokens:
        return tokens_of(settings.base_url, settings.client_id, settings.client_secret)

    def _flow(self, call: Call[T], settings: Settings) -> Flow[T]:
        return exchange(call, settings.peer(self.track_id), self._tokens(settings), attempts=self.attempts)

    def _no_connection(self, error: Exception) -> MediationError:
        if isinstance(error, AirflowNotFoundException):
            return MisconfigurationError(
                f"Connection {self.mediation_conn_id!r} was not found: define it, of type 'mediation', or see whether "
                f"your secrets backend is down (Airflow does not tell the two apart)."
            )
        return TransientError(f"Connection {self.mediation_conn_id!r} could not be looked up: {error}")


class MediationHook(_ConnectionHook):
    """Calls Zuora Mediation and waits for the answer. Can be used as a context manager; ``close()`` otherwise.

    :param mediation_conn_id: the Airflow connection, of type ``mediation``
    :param track_id: sent as ``Zuora-Track-Id`` (made legal), to find the calls at Zuora
    :param attempts: how often a call is tried in all while the trouble passes by itself
    """

    run_meter = _method(api.run_meter)
    debug_meter = _method(api.debug_meter)
    stop_meter = _method(api.stop_meter)
    run_status = _method(api.run_status)
    meter_summary = _method(audit.meter_summary)
    audit_trail_entries = _entries(audit.audit_trail_entries)
    create_export_job = _method(audit.create_export_job)
    list_export_jobs = _method(audit.list_export_jobs)
    export_download_url = _method(audit.export_download_url)

    def __init__(
        self,
        mediation_conn_id: str = _ConnectionHook.default_conn_name,
        *,
        track_id: str | None = None,
        attempts: int = 5,
    ) -> None:
        super().__init__(mediation_conn_id, track_id=track_id, attempts=attempts)
        self._settings: Settings | None = None
        self._transport: SyncTransport | None = None

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
            self._drive(obtain_token(settings.peer(self.track_id), tokens))
        except MediationError as error:
            return False, str(error)
        try:
            self._carry_out(api.run_status(api.IMPOSSIBLE_METER_ID))
        except MediationError as error:
            return judge_probe(settings.peer().host, error)
        return judge_probe(settings.peer().host, None)

    def get_conn(self) -> SyncTransport:
        """Return what sends the requests, on the session of the HTTP provider's hook."""
        if self._transport is None:
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

    def _carry_out(self, call: Call[T]) -> T:
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
    :param track_id: sent as ``Zuora-Track-Id`` (made legal), to find the calls at Zuora
    :param attempts: how often a call is tried in all while the trouble passes by itself
    """

    run_meter = _async_method(api.run_meter)
    debug_meter = _async_method(api.debug_meter)
    stop_meter = _async_method(api.stop_meter)
    run_status = _async_method(api.run_status)
    meter_summary = _async_method(audit.meter_summary)
    audit_trail_entries = _async_entries(audit.audit_trail_entries)
    create_export_job = _async_method(audit.create_export_job)
    list_export_jobs = _async_method(audit.list_export_jobs)
    export_download_url = _async_method(audit.export_download_url)

    def __init__(
        self,
        mediation_conn_id: str = _ConnectionHook.default_conn_name,
        *,
        track_id: str | None = None,
        attempts: int = 5,
    ) -> None:
        super().__init__(mediation_conn_id, track_id=track_id, attempts=attempts)
        self._bound: _Bound | None = None

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
                bound.transport = await AsyncTransport.open(bound.settings)
            return bound.settings, bound.transport

    async def _look_up(self) -> Settings:
        from airflow.providers.common.compat.connection import get_async_connection

        try:
            connection = await get_async_connection(self.mediation_conn_id, hook=self)
        except Exception as error:
            raise self._no_connection(error) from error
        return settings_of(self.mediation_conn_id, connection)

    async def _carry_out(self, call: Call[T]) -> T:
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
