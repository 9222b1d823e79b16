"""What the paths under ``/mediation`` answer: JSON always, without a word about what went on inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

UNAVAILABLE: Final = "temporarily unavailable"
ERROR_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"success": {"const": False}, "error": {"type": "string"}},
    "required": ["success", "error"],
}


_MEANINGS: Final = {
    400: "the message cannot be read",
    401: "the request does not prove that it comes from whom it should",
    404: "no connection of type `mediation` with callout authentication has this id",
    405: "another method is needed",
    408: "the body did not come in time",
    413: "the body is too large",
    503: "temporarily not possible, or the server is set up wrongly; its log says which",
}


def refused(status: int, error: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an answer that says no; Zuora's "confirm success by parsing response content" reads ``success``.

    :param error: one sentence for whoever reads Zuora's callout history
    """
    return JSONResponse({"success": False, "error": error}, status, headers=dict(headers or {}))


def error_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route for OpenAPI: what each status means."""
    content = {"application/json": {"schema": ERROR_SCHEMA}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}
