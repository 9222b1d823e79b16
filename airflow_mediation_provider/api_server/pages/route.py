"""What all pages have in common: an error is a page too, and nothing from elsewhere is loaded or may frame them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import StringConstraints
from starlette.exceptions import HTTPException

from airflow_mediation_provider.api_server.pages.rendering import page
from airflow_mediation_provider.journal.transaction import JournalMissing, JournalUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi import Request, Response

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_TITLES: Final = {
    400: "This address cannot be read",
    401: "You are not logged in",
    403: "You may not see this",
    404: "Nothing is known of this",
    503: "The journal cannot be read",
}

Text = Annotated[str, StringConstraints(pattern="^[^\x00]*$")]
"""A part of an address or a form: databases take no text with a NUL in it."""


class PageRoute(APIRoute):
    """A route whose answer is HTML, whatever happens."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with errors made into pages."""
        handle = super().get_route_handler()

        async def handle_page(request: Request) -> Response:
            try:
                response = await handle(request)
            except HTTPException as error:
                # A token that another key signed, of before that was changed: as with an expired one, a login helps.
                status = 401 if error.detail == "Invalid JWT token" else error.status_code
                response = _error_page(request, status, str(error.detail))
            except RequestValidationError as error:
                wrong = ", ".join(str(each["loc"][-1]) for each in error.errors())
                response = _error_page(request, 400, f"These parts of it are missing or wrong: {wrong}.")
            except JournalUnavailable as error:
                request.app.state.complaints.say(logging.ERROR, "A page was answered 503", request.url.path, str(error))
                detail = str(error) if isinstance(error, JournalMissing) else "The API server's log says why."
                response = _error_page(request, 503, detail)
            response.headers.update(_HEADERS)
            return response

        return handle_page


def _error_page(request: Request, status: int, detail: str) -> Response:
    # Airflow's own words for these say nothing to a person.
    detail = {
        401: "Your login has expired, or there was none: nothing is shown until you log in.",
        403: "Your role in Airflow lacks the permission to read assets." if detail == "Forbidden" else detail,
    }.get(status, detail)
    title = _TITLES.get(status, "That did not work")
    return page(request, "error.html", status=status, title=title, heading=title, detail=detail)
