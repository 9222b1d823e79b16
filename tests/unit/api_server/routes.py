"""All routes of an application, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.routing import BaseRoute


def each_route(of: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """FastAPI 0.137 and later keep an included router as one route; the routers included here have no prefix."""
    for route in of:
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from each_route(included.routes)
