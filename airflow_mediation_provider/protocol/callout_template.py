"""What to paste into Zuora so that its callouts come as a connection wants them: the body, and the settings around it.

Zuora documents the labels of the event's fields, but not all of their merge fields: those that it does not are marked,
to be compared with what the template editor inserts. No text of here holds a secret.

Sources: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/events/notifications-in-mediation and
https://docs.zuora.com/en/zuora-platform/extensibility/events-and-notifications/callout-templates/create-a-callout-template
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from airflow_mediation_provider.protocol.callout_settings import CalloutSettings


@dataclass(frozen=True, slots=True)
class MergeField:
    """One field of the *Meter Session Status Change* event.

    :param key: its name in the recommended body
    :param tag: its merge field
    :param label: what Zuora's documentation calls it
    :param documented: whether Zuora's documentation shows the tag itself, and not the label alone
    """

    key: str
    tag: str
    label: str
    documented: bool


# The meter's name is left out: a quote in it would break the JSON, and Zuora neither sends nor retries such a callout.
FIELDS: Final = (
    MergeField("meterId", "Meter.Id", "Meter Id", documented=True),
    MergeField("sessionId", "MeterSession.Id", "Session Id", documented=False),
    MergeField("runType", "MeterSession.RunType", "Session Run Type", documented=True),
    MergeField("status", "MeterSession.Status", "Session Status", documented=True),
    MergeField("previousStatus", "MeterSession.PreviousStatus", "Session Previous Status", documented=False),
    MergeField("startTime", "MeterSession.StartTime", "Session start time", documented=False),
    MergeField("endTime", "MeterSession.EndTime", "Session end time", documented=False),
)


def template_body() -> str:
    """Return the recommended body of the callout template: JSON with Zuora's merge fields."""
    return json.dumps({field.key: f"{{{{{field.tag}}}}}" for field in FIELDS}, indent=2)


def settings_to_paste(settings: CalloutSettings, url: str) -> list[tuple[str, str]]:
    """Return what to choose and to type in Zuora's form, by the form's own words, in its order.

    :param settings: of the connection; of its secrets only the name of their field is shown
    :param url: the address under which Zuora reaches the endpoint
    """
    rows = [
        ("Related Event", "Meter Session Status Change"),
        ("Http Method", "POST"),
        ("Request URL", url),
        ("Retriable", "on: without it, one failed attempt loses the event"),
        ("Confirm success by parsing response content", "on or off: the answer is what Zuora asks for"),
    ]
    if settings.basic is not None:
        rows += [
            ("Authorization", "Basic"),
            ("Username", settings.basic.username),
            ("Password", "the connection's callout_password"),
            ("Enable Preemptive Authentication", "on saves one request a callout; off works too"),
        ]
    if settings.token is not None:
        rows.append(("Custom header", f"{settings.token.header}: the connection's callout_token"))
    if settings.hmac is not None:
        rows += [
            ("HMAC algorithm", settings.hmac.algorithm),
            ("HMAC output format", settings.hmac.encoding),
            ("HMAC secret", "the connection's callout_hmac_secret"),
            ("HMAC data", settings.hmac.message),
            ("HMAC header name", settings.hmac.header),
            ("HMAC header value", f"{settings.hmac.prefix}{{{{Request.HMAC.Signed}}}}"),
        ]
    return rows


def template_text(settings: CalloutSettings, url: str) -> str:
    """Return all of it as a text to read and to paste from.

    :param settings: of the connection
    :param url: the address under which Zuora reaches the endpoint
    """
    rows = settings_to_paste(settings, url)
    width = max(len(name) for name, _ in rows)
    inferred = [field for field in FIELDS if not field.documented]
    lines = [
        "In Zuora, Extension Studio > Events & Notifications > Callout Templates > + Add New Callout Template:",
        "",
        *(f"  {name:<{width}}  {value}" for name, value in rows),
        "",
        "Body (JSON):",
        "",
        template_body(),
        "",
        "Zuora documents these merge fields by their labels only. Compare each with what '+ Insert Merge Fields'",
        "inserts: a wrong one stays empty, and without the session id nothing can be done with a callout.",
        "",
        *(f"  {{{{{field.tag}}}}}  is meant to be  {field.label!r}" for field in inferred),
        "",
    ]
    if not settings.enabled:
        lines += [
            f"Connection {settings.conn_id!r} accepts no callout yet: set callout_hmac_secret, or callout_username and",
            "callout_password, or callout_token in its extra, and run this command again for the rest of the settings.",
            "",
        ]
    if settings.date_format is None:
        lines += [
            "Zuora writes times as your tenant's locale has them. Where they are not ISO 8601, set callout_date_format",
            f"(times without a zone are read as {settings.timezone}).",
            "",
        ]
    return "\n".join(lines)
