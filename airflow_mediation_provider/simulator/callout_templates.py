"""The requests that a callout template makes from an event: merge fields, dates of a locale, signatures; no I/O.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/merge-fields-for-email-and-callout-templates/merge-field-syntax
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from airflow_mediation_provider.simulator.callout_config import HASHES, SPELLINGS
from airflow_mediation_provider.simulator.callout_events import FIELDS, Event, Field, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_mediation_provider.simulator.callout_config import CalloutConfig

LOCALES: Final = {
    "en_US": "%m/%d/%Y %I:%M:%S %p",
    "en_GB": "%d/%m/%Y %H:%M:%S",
    "de_DE": "%d.%m.%Y %H:%M:%S",
    "ja_JP": "%Y/%m/%d %H:%M:%S",
}
_TAG: Final = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}|<([A-Za-z]+\.[A-Za-z. ]+)>")


def text(event: Event, name: str, config: CalloutConfig) -> str:
    """Return the value of a merge field, by its dotted name or label; nothing if the event does not have it."""
    wanted = _plain(name.removeprefix("DataSource."))
    for field in FIELDS[event.kind]:
        if wanted in (_plain(field.tag), _plain(field.label), _plain(_based(field.tag))):
            return _text(event.values.get(field.tag), config)
    if wanted in ("eventtimestamp", "eventdate"):
        return _text(datetime.fromtimestamp(event.at, UTC), config)
    return {"eventid": event.id, "eventcategory": config.category}.get(wanted, "")


def _based(tag: str) -> str:
    """Return a merge field of another object as an advanced one, which begins with the base object of the event."""
    return tag if tag.startswith(("MeterSession.", "EventStore")) else f"MeterSession.{tag}"


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _text(value: Value, config: CalloutConfig) -> str:
    if value is None:
        return config.null_text
    return date_text(value, config.date_format, config.timezone) if isinstance(value, datetime) else str(value)


def date_text(when: datetime, form: str, timezone: str) -> str:
    """Return an instant in the format of the tenant's locale.

    :param form: ``iso``, ``epoch_ms``, a locale of ``LOCALES`` or a pattern of ``strftime``
    """
    local = when.astimezone(ZoneInfo(timezone))
    if form == "epoch_ms":
        return str(int(when.timestamp() * 1000))
    if form == "iso":
        return local.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return local.strftime(LOCALES.get(form, form))


def fill(template: str, value_of: Callable[[str], str]) -> str:
    """Return a template with its merge fields filled in, unescaped: Zuora escapes nothing."""
    return _TAG.sub(lambda found: value_of(found[1] or found[2]), template)


def address(config: CalloutConfig, event: Event) -> str:
    """Return the URL of an event's callout."""
    return fill(config.url, lambda name: text(event, name, config))


def render(config: CalloutConfig, event: Event) -> str:
    """Return the body of an event's callout; whether it is JSON depends on the values."""
    template = str(config.body)
    if template in SPELLINGS:
        pairs = {_spell(field, template): f"{{{{{field.tag}}}}}" for field in FIELDS[event.kind]}
        template = json.dumps(pairs)
    return fill(template, lambda name: text(event, name, config))


def headers(config: CalloutConfig, event: Event, body: str, own: Mapping[str, str]) -> dict[str, str]:
    """Return all headers of an attempt, the signature among them.

    :param own: the headers that Zuora adds to this attempt, which the signed message may contain
    """
    custom = {name: fill(value, lambda tag: text(event, tag, config)) for name, value in config.headers.items()}
    sent = {"Content-Type": "application/json", **own, **custom}
    if config.hmac_secret is None:
        return sent
    known = {name.lower(): value for name, value in sent.items()}

    def part(name: str) -> str:
        if name == "Request.Body":
            return body
        if name.startswith("Request.Headers."):
            return known.get(name.removeprefix("Request.Headers.").lower(), "")
        return text(event, name, config)

    message = fill(config.hmac_data, part)
    signed = signature(config.hmac_secret, message, config.hmac_algorithm, config.hmac_output_format)
    value = fill(config.hmac_value, lambda name: signed if name == "Request.HMAC.Signed" else part(name))
    return {**sent, config.hmac_key: value}


def signature(secret: str, message: str, algorithm: str, output_format: str) -> str:
    """Return the HMAC of a message as text.

    :param algorithm: as Zuora names it, for example ``SHA-256``
    :param output_format: ``BASE64`` or ``HEX``
    """
    digest = hmac.new(secret.encode(), message.encode(), HASHES[algorithm]).digest()
    return digest.hex() if output_format == "HEX" else base64.b64encode(digest).decode()


def context(config: CalloutConfig, event: Event, body: str, form: str) -> dict[str, Any]:
    """Return the ``eventContext`` of the callout history.

    :param form: ``full``: merge fields in angle brackets, as in Zuora's sample, and the body as ``<sendXML>``, as
        custom events have it; ``tags``: without the body; ``dotted``: without the brackets too
    """
    names = [*(field.tag for field in FIELDS[event.kind]), "Event.Id", "Event.Category", "Event.Timestamp"]
    values = {name if form == "dotted" else f"<{name}>": text(event, name, config) for name in names}
    return {**values, "<sendXML>": body} if form == "full" else values


def _spell(field: Field, spelling: str) -> str:
    first, *rest = field.words.split()
    return {
        "labels": field.label,
        "dotted": field.tag,
        "concatenated": field.tag.replace(".", ""),
        "base_object": _based(field.tag).replace(".", ""),
        "camelCase": first + "".join(word.capitalize() for word in rest),
        "snake_case": "_".join([first, *rest]),
    }[spelling]
