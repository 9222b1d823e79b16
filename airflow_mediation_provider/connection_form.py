"""The form in which Airflow's UI shows a connection of type ``mediation``: its fields, labels and hints, as data.

Every Airflow process reads it with the provider's info, so it imports next to nothing. What the fields mean is checked
in ``hooks.settings`` and ``protocol.callout_settings``.
"""

from __future__ import annotations

from typing import Any, Final

from airflow_mediation_provider.protocol.data_centers import DataCenter

_SECTION: Final = "Callouts"


def connection_type() -> dict[str, Any]:
    """Return the entry of ``connection-types`` of the provider's info."""
    return {
        "connection-type": "mediation",
        "hook-class-name": "airflow_mediation_provider.hooks.mediation.MediationHook",
        "hook-name": "Zuora Mediation",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port"],
            "relabeling": {
                "login": "Client ID",
                "password": "Client secret",
                "host": "REST base URL (overrides the data center)",
            },
            "placeholders": {
                "login": "of an OAuth client of a Zuora user who may run meters",
                "host": "only for a proxy or the simulator, e.g. http://127.0.0.1:8080",
            },
        },
        "conn-fields": {
            "data_center": {
                "label": "Data center",
                "description": "Where the Zuora tenant lives; a client ID is known in its own tenant only.",
                "schema": {
                    "type": ["string", "null"],
                    "enum": list(DataCenter.__members__),
                    "values_display": {key: center.label for key, center in DataCenter.__members__.items()},
                },
            },
            "entity_id": _text(
                "Entity ID", "Only with Multi-entity, when the OAuth client's user has several entities."
            ),
            "org_ids": _text(
                "Organization IDs", "Only with Multi-Org: ids separated by commas. Empty: all of the user's."
            ),
            "ui_link_template": _text(
                "UI link template",
                "Address of a session's page in your tenant, for links in Airflow. Fields: {meter_id}, "
                "{session_id}, {run_id}, {ui_base}. Copy it from your browser: Zuora documents no address.",
            ),
            **_callouts(),
        },
    }


def _callouts() -> dict[str, Any]:
    """Return the fields of the callouts, in the order in which Zuora's form has them."""
    return {
        "callout_hmac_secret": _secret("HMAC secret", "Callouts must be signed with it. All that is set is required."),
        "callout_hmac_previous_secret": _secret(
            "Previous HMAC secret", "Still accepted: while you change the secret in Zuora, clear it then."
        ),
        "callout_hmac_header": _callout("HMAC header", "Zuora's HMAC key. Empty: X-Mediation-Signature."),
        "callout_hmac_algorithm": _callout("HMAC algorithm", "Empty: SHA-256.", enum=["SHA-256", "SHA-384", "SHA-512"]),
        "callout_hmac_encoding": _callout("HMAC output format", "Empty: BASE64.", enum=["BASE64", "HEX"]),
        "callout_hmac_prefix": _callout(
            "HMAC prefix", "What stands in the header before the signature, for example sha256=."
        ),
        "callout_hmac_message": _callout(
            "HMAC data",
            "What is signed, as in Zuora's form. Empty: {{Request.Body}}. It may hold {{Request.Headers.<name>}} too.",
        ),
        "callout_username": _callout("Username", "Basic authentication: Zuora asks first, and is then asked for it."),
        "callout_password": _secret("Password", "Of the user above."),
        "callout_previous_password": _secret("Previous password", "Still accepted while you change it in Zuora."),
        "callout_token": _secret("Token", "A text that callouts must hold in a header that you add in Zuora."),
        "callout_previous_token": _secret("Previous token", "Still accepted while you change it in Zuora."),
        "callout_token_header": _callout("Token header", "Empty: X-Mediation-Token."),
        "callout_date_format": _callout(
            "Date format",
            "How your tenant's locale writes times, for example MM/DD/YYYY hh:mm:ss A. Empty: what reads only one way.",
        ),
        "callout_timezone": _callout(
            "Time zone",
            "Of times that name none, in callouts and in their history, for example Europe/Berlin. Empty: UTC.",
        ),
    }


def _text(label: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"], **schema}}


def _callout(label: str, description: str, **schema: Any) -> dict[str, Any]:
    return _text(label, description, section=_SECTION, **schema)


def _secret(label: str, description: str) -> dict[str, Any]:
    # The UI hides what is typed here; what is stored, Airflow masks by the field's name.
    return _callout(label, description, format="password")
