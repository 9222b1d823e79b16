"""Methods of the hooks, made of the calls of the protocol: each call is defined and typed once, for both hooks."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator

    from airflow_mediation_provider.protocol.api import Call
    from airflow_mediation_provider.protocol.replies import Json, Page

    Pages = Generator[Call[Page], Page, None]

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")


class SyncCaller(Protocol):
    """A hook for threads."""

    def carry_out(self, call: Call[T]) -> T:
        """Send the call and return its result."""


class AsyncCaller(Protocol):
    """A hook for event loops."""

    async def carry_out(self, call: Call[T]) -> T:
        """Send the call and return its result."""


def method(build: Callable[P, Call[T]]) -> Callable[Concatenate[SyncCaller, P], T]:
    """Make a method that carries out the call that ``build`` makes of its arguments."""

    def call_it(self: SyncCaller, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.carry_out(build(*args, **kwargs))

    return _with_self(call_it, build)


def async_method(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncCaller, P], Coroutine[Any, Any, T]]:
    """Make a coroutine method that carries out the call that ``build`` makes of its arguments."""

    async def call_it(self: AsyncCaller, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.carry_out(build(*args, **kwargs))

    return _with_self(call_it, build)


def entries(build: Callable[P, Pages]) -> Callable[Concatenate[SyncCaller, P], Iterator[Json]]:
    """Make a method that yields the entries of all pages, asking for a page when it comes to it."""

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
    """Make a method that yields the entries of all pages, asking for a page when it comes to it."""

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
    """Give a method the name, words and signature of its call, with ``self`` in front, for help() and mocks."""
    functools.update_wrapper(method, build)
    call = inspect.signature(build)
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [me, *call.parameters.values()],
        return_annotation=returns or str(call.return_annotation).removeprefix("Call[").removesuffix("]"),
    )
    return method
