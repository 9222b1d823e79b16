"""MediationHook and MediationAsyncHook: Zuora Mediation's REST API behind an Airflow connection.

Both have the same methods with the same arguments: those of the calls in ``protocol.zuora.requests``,
``protocol.zuora.audit`` and ``protocol.callouts.history``, where they are documented. Each call is defined and typed
once, for both hooks. ``protocol.zuora.flow`` carries a call out; the two hooks differ only in how they send, sleep and
wait. They raise the errors of ``protocol.zuora.errors`` only.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_mediation_provider.hooks import api_usage
from airflow_mediation_provider.hooks.settings import CONNECTION_TYPE, Settings, log_cautions, settings_of
from airflow_mediation_provider.hooks.tokens import TenantTokens, TokenFlight, tokens_of
from airflow_mediation_provider.hooks.transport import AsyncTransport, SyncTransport
from airflow_mediation_provider.protocol.callouts import history
from airflow_mediation_provider.protocol.zuora import audit, requests
from airflow_mediation_provider.protocol.zuora.errors import (
    MediationError,
    MisconfigurationError,
    TransientError,
    UnusableAddressError,
)
from airflow_mediation_provider.protocol.zuora.flow import (
    Peer,
    Send,
    Sleep,
    Step,
    StepResult,
    exchange,
    legal_track_id,
    obtain_token,
)
from airflow_mediation_provider.protocol.zuora.replies import judge_probe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from airflow.sdk import Connection

    from airflow_mediation_provider.protocol.zuora.replies import Json, Page
    from airflow_mediation_provider.protocol.zuora.requests import Call

    Pages = Generator[Call[Page], Page, None]

__all__ = ["MediationAsyncHook", "MediationHook"]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")

Flow = Generator[Step, StepResult, T]


class SyncCaller(Protocol):
    """A hook for threads."""

    def carry_out(self, call: Call[T]) -> T:
        """Send the call and return its result."""


class AsyncCaller(Protocol):
    """A hook for event loops."""

    async def carry_out(self, call: Call[T]) -> T:
        """Send the call and return its result."""


def method(build: Callable[P, Call[T]]) -> Callable[Concatenate[SyncCaller, P], T]:
    """Make a method that carries out the call which ``build`` makes of its arguments."""

    def call_it(self: SyncCaller, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.carry_out(build(*args, **kwargs))

    return _with_self(call_it, build)


def async_method(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncCaller, P], Coroutine[Any, Any, T]]:
    """Make a coroutine method that carries out the call which ``build`` makes of its arguments."""

    async def call_it(self: AsyncCaller, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.carry_out(build(*args, **kwargs))

    return _with_self(call_it, build)


def entries(build: Callable[P, Pages]) -> Callable[Concatenate[SyncCaller, P], Iterator[Json]]:
    """Make a method that yields the entries of all pages, and requests each page when it is needed."""

    def walk(self: SyncCaller, pages: Pages) -> Iterator[Json]:
        call = next(pages, None)
        while call is not None:
            page = self.carry_out(call)
            yield from page.entries
            call = _next_call(pages, page)

    def call_it(self: SyncCaller, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Json]:
        return walk(self, build(*args, **kwargs))

    return _with_self(call_it, build, "Iterator[Json]")


def async_entries(build: Callable[P, Pages]) -> Callable[Concatenate[AsyncCaller, P], AsyncIterator[Json]]:
    """Make a method that yields the entries of all pages, and requests each page when it is needed."""

    async def walk(self: AsyncCaller, pages: Pages) -> AsyncIterator[Json]:
        call = next(pages, None)
        while call is not None:
            page = await self.carry_out(call)
            for entry in page.entries:
                yield entry
            call = _next_call(pages, page)

    def call_it(self: AsyncCaller, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Json]:
        return walk(self, build(*args, **kwargs))

    return _with_self(call_it, build, "AsyncIterator[Json]")


def _next_call(pages: Pages, page: Page) -> Call[Page] | None:
    try:
        return pages.send(page)
    except StopIteration:
        return None


def _with_self(method: F, build: Callable[..., Any], returns: str | None = None) -> F:
    """Give a method the name, docstring and signature of its call, with ``self`` in front, for help() and mocks."""
    functools.update_wrapper(method, build)
    call = inspect.signature(build)
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    returned = returns or str(call.return_annotation).removeprefix("Call[").removesuffix("]")
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [me, *call.parameters.values()], return_annotation=returned
    )
    method.__annotations__ = {**build.__annotations__, "return": returned}
    return method


class _ConnectionHook(BaseHook):
    """The common part of both hooks: a connection, a track id, a number of attempts.

    :param mediation_conn_id: the Airflow connection, of type ``mediation``
    :param track_id: sent as ``Zuora-Track-Id`` (made legal), to find the calls at Zuora; in a task, the task instance
    :param attempts: how many times a call is tried in all, while its errors are temporary; 1: no retries
    :param settings: the connection, if it was read and checked already
    :param patience: at most this many seconds of pauses between the tries of one call
    """

    conn_name_attr = "mediation_conn_id"
    default_conn_name = "mediation_default"
    conn_type = CONNECTION_TYPE
    hook_name = "Zuora Mediation"

    def __init__(
        self,
        mediation_conn_id: str = default_conn_name,
        *,
        track_id: str | None = None,
        attempts: int = 5,
        settings: Settings | None = None,
        patience: float = math.inf,
    ) -> None:
        super().__init__()
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {attempts}")
        self.mediation_conn_id = mediation_conn_id
        self.track_id = track_id
        self.attempts = attempts
        self._settings = settings
        self._patience = patience

    def _checked(self, connection: Connection) -> Settings:
        settings = settings_of(self.mediation_conn_id, connection)
        log_cautions(self.mediation_conn_id, settings.cautions)
        return settings

    def _tokens(self, settings: Settings) -> TenantTokens:
        return tokens_of(settings.base_url, settings.client_id, settings.client_secret)

    def _peer(self, settings: Settings) -> Peer:
        return settings.peer(self.track_id or _track_id_of_task())

    def _flow(self, call: Call[T], settings: Settings) -> Flow[T]:
        note = partial(api_usage.count_request, self.mediation_conn_id)
        return exchange(
            call,
            self._peer(settings),
            self._tokens(settings),
            attempts=self.attempts,
            note=note,
            patience=self._patience,
        )

    def _no_connection(self, error: Exception) -> MediationError:
        name = f"Connection {self.mediation_conn_id!r}"
        if isinstance(error, AirflowNotFoundException):
            return MisconfigurationError(
                f"{name} was not found: define it, of type {CONNECTION_TYPE!r}, or check for a malformed definition and"
                " for an outage of your secrets backend (Airflow reports these alike)."
            )
        if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
            return MisconfigurationError(f"{name} may not be read by this task or triggerer: {error}")
        if isinstance(error, ValueError):
            return MisconfigurationError(f"{name} cannot be read: {error}")
        return TransientError(f"{name} could not be read: {error}")


def _track_id_of_task() -> str | None:
    """Return the name of the running task instance for Zuora, or ``None`` outside of a task."""
    from airflow.sdk import get_current_context

    try:
        ti = get_current_context()["ti"]
    except RuntimeError:
        return None
    return legal_track_id(ti.dag_id, ti.task_id, ti.run_id, -1 if ti.map_index is None else ti.map_index, ti.try_number)


def _no_answer(error: MediationError) -> bool:
    return isinstance(error, TransientError) and error.status_code is None


class MediationHook(_ConnectionHook):
    """Calls Zuora Mediation and waits for the answer: ``with hook``, or ``hook.close()`` at the end.

    :param mediation_conn_id: the Airflow connection, of type ``mediation``
    :param track_id: sent as ``Zuora-Track-Id`` (made legal), to find the calls at Zuora; in a task, the task instance
    :param attempts: how many times a call is tried in all, while its errors are temporary; 1: no retries
    :param settings: the connection, if it was read and checked already
    :param patience: at most this many seconds of pauses between the tries of one call
    """

    run_meter = method(requests.run_meter)
    debug_meter = method(requests.debug_meter)
    stop_meter = method(requests.stop_meter)
    run_status = method(requests.run_status)
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

        :raises MisconfigurationError: it is missing or wrong; one sentence with the reason
        """
        if self._settings is None:
            try:
                connection = self.get_connection(self.mediation_conn_id)
            except Exception as error:
                raise self._no_connection(error) from error
            self._settings = self._checked(connection)
        return self._settings

    def session_url(self, meter_id: str, session_id: str | None, run_id: str | None = None) -> str | None:
        """Return the address of a session's page by the connection's link template, ``None`` where it has none.

        :raises MisconfigurationError: the connection is missing or wrong, its link template included
        """
        return self.settings.session_url(meter_id, session_id, run_id)

    def test_connection(self) -> tuple[bool, str]:
        """Test the connection, and return which of host, credentials, permission or Mediation itself is wrong.

        Zuora has no call that lists meters, so this requests the status of a meter that cannot exist: the kind of
        refusal gives the result. It always fetches a new token. Both stacks must reach the host: that of workers, and
        that of triggerers. The settings of the callouts are checked, too.

        :return: whether it works, and a sentence with what could not be tested
        """
        try:
            settings = self.settings
            _ = settings.callouts
            tokens = self._tokens(settings)
            tokens.discard()
            self._drive(obtain_token(self._peer(settings), tokens))
        except MediationError as error:
            # The form has no name for the connection yet: Airflow tests it under a temporary one.
            sentence = str(error).removeprefix(f"Connection {self.mediation_conn_id!r}: ")
            if _no_answer(error) and self._missed_by_triggerers() is None:
                reached = "From this machine, the client of triggerers reaches the host, that of workers does not"
                return False, f"{reached}: {sentence}"
            names_field = "_" in sentence.partition(" ")[0]
            return False, sentence if names_field else sentence[:1].upper() + sentence[1:]
        host = settings.peer().host
        try:
            self.carry_out(requests.run_status(requests.IMPOSSIBLE_METER_ID))
        except MediationError as error:
            works, words = judge_probe(host, error)
        else:
            works, words = judge_probe(host, None)
        if works and (missed := self._missed_by_triggerers()) is not None:
            return False, f"Tasks on workers would reach {host}, deferred tasks would not: {missed}"
        return works, ". ".join((words.rstrip("."), *(f"Caution: {each}" for each in settings.cautions))) + "."

    def _missed_by_triggerers(self) -> MediationError | None:
        """Return why the stack of triggerers reaches nothing; ``None``: it gets an answer, good or not."""

        async def ask() -> None:
            hook = MediationAsyncHook(self.mediation_conn_id, attempts=1, settings=self.settings)
            async with hook:
                await hook.run_status(requests.IMPOSSIBLE_METER_ID)

        try:
            # In a thread: the caller may have an event loop.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, ask()).result()
        except MediationError as error:
            return error if _no_answer(error) else None
        return None

    def get_conn(self) -> SyncTransport:
        """Return the sender of requests, on the session of the HTTP provider's hook."""
        if self._transport is not None and not self._transport.serves(self.settings):
            self._transport.close()
            self._transport = None
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

    def carry_out(self, call: Call[T]) -> T:
        """Carry out a call of ``protocol.zuora.requests`` and the like, or your own; the methods use it."""
        try:
            return self._drive(self._flow(call, self.settings))
        except (MisconfigurationError, UnusableAddressError):
            # The connection, or a file that it names, may be corrected during a long wait: read it again next time.
            self.close()
            raise

    def _drive(self, flow: Flow[T]) -> T:
        transport = self.get_conn()
        outcome: StepResult = None
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
    """The parts that belong to one event loop."""

    loop: asyncio.AbstractEventLoop
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    settings: Settings | None = None
    transport: AsyncTransport | None = None


class MediationAsyncHook(_ConnectionHook):
    """Calls Zuora Mediation from an event loop, over one session: ``async with hook``, or ``await hook.close()``.

    :param mediation_conn_id: the Airflow connection, of type ``mediation``
    :param track_id: sent as ``Zuora-Track-Id`` (made legal), to find the calls at Zuora; in a task, the task instance
    :param attempts: how many times a call is tried in all, while its errors are temporary; 1: no retries
    :param settings: the connection, if it was read and checked already
    :param patience: at most this many seconds of pauses between the tries of one call
    """

    run_meter = async_method(requests.run_meter)
    debug_meter = async_method(requests.debug_meter)
    stop_meter = async_method(requests.stop_meter)
    run_status = async_method(requests.run_status)
    meter_summary = async_method(audit.meter_summary)
    audit_trail_entries = async_entries(audit.audit_trail_entries)
    create_export_job = async_method(audit.create_export_job)
    list_export_jobs = async_method(audit.list_export_jobs)
    export_download_url = async_method(audit.export_download_url)
    callout_history = async_entries(history.callout_history)

    _bound: _Bound | None = None

    async def settings(self) -> Settings:
        """Return the checked connection, read once.

        :raises MisconfigurationError: it is missing or wrong; one sentence with the reason
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
                given, self._settings = self._settings, None
                bound.settings = given or await self._look_up()
            if bound.transport is not None and not bound.transport.serves(bound.settings):
                await bound.transport.close()
                bound.transport = None
            if bound.transport is None:
                try:
                    bound.transport = await AsyncTransport.open(bound.settings)
                except MisconfigurationError:
                    bound.settings = None  # read it again: it may be corrected during a long wait
                    raise
            return bound.settings, bound.transport

    async def _look_up(self) -> Settings:
        from airflow.providers.common.compat.connection import get_async_connection

        try:
            # Airflow 3.2 ends a triggerer in which such a request is canceled: the next one reads its answer.
            connection = await asyncio.shield(get_async_connection(self.mediation_conn_id))
        except Exception as error:
            raise self._no_connection(error) from error
        return self._checked(connection)

    async def carry_out(self, call: Call[T]) -> T:
        """Carry out a call of ``protocol.zuora.requests`` and the like, or your own; the methods use it."""
        settings, transport = await self._open()
        try:
            return await self._drive(self._flow(call, settings), transport)
        except (MisconfigurationError, UnusableAddressError) as error:
            # The connection, or a file that it names, may be corrected during a long wait: read it again next time.
            bound = self._bound
            if bound is not None and bound.settings is settings:
                bound.settings = None
            if isinstance(error, UnusableAddressError) and bound is not None and bound.transport is transport:
                bound.transport = None
                await transport.close()
            raise

    async def _drive(self, flow: Flow[T], transport: AsyncTransport) -> T:
        outcome: StepResult = None
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
