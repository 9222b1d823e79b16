"""Apache Airflow provider for Zuora Mediation."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_SECTION = "Callouts"


def get_provider_info() -> dict[str, Any]:
    """Return what Airflow's ProvidersManager reads of this provider; every Airflow process calls it."""
    name = "Zuora Mediation"
    package = "airflow_mediation_provider"
    return {
        "package-name": "airflow-mediation-provider",
        "name": name,
        "description": "Run Zuora Mediation meters, wait for their sessions, branch on how they end.",
        "integrations": [
            {
                "integration-name": name,
                "external-doc-url": "https://docs.zuora.com/en/zuora-platform/extensibility/mediation",
                "tags": ["service"],
            }
        ],
        "hooks": [{"integration-name": name, "python-modules": [f"{package}.hooks.mediation"]}],
        "operators": [
            {
                "integration-name": name,
                "python-modules": [
                    f"{package}.operators.{module}"
                    for module in ("audit", "branch", "meter", "prune", "reconcile", "stop")
                ],
            }
        ],
        "sensors": [{"integration-name": name, "python-modules": [f"{package}.sensors.meter_session"]}],
        "triggers": [
            {
                "integration-name": name,
                "python-modules": [
                    f"{package}.triggers.{module}" for module in ("audit", "meter_session", "meter_watch")
                ],
            }
        ],
        "extra-links": [f"{package}.links.MeterSessionPageLink", f"{package}.links.MeterSessionLink"],
        "connection-types": [_connection_type()],
        "asset-uris": [
            {
                "schemes": ["mediation"],
                "handler": f"{package}.assets.sanitize_uri",
                "factory": f"{package}.assets.create_asset",
            }
        ],
        "config": {"mediation": {"description": "Callouts of Zuora Mediation.", "options": _options()}},
        "cli": [f"{package}.cli.get_cli_commands"],
        "db-managers": [f"{package}.journal.manager.MediationDBManager"],
    }


def _options() -> dict[str, dict[str, Any]]:
    return {
        "feed_url": {
            "description": (
                "Address of the API server's paths under /mediation, for workers and triggerers. Without it they try "
                "what [core] execution_api_server_url and [api] base_url imply."
            ),
            "version_added": None,
            "type": "string",
            "example": "https://airflow.example.com/mediation",
            "default": None,
        },
        "cross_check_interval": {
            "description": (
                "Seconds between two polls of a meter's status while callouts arrive; a longer poke_interval wins."
            ),
            "version_added": None,
            "type": "integer",
            "example": None,
            "default": "300",
        },
    }


def _connection_type() -> dict[str, Any]:
    """Return the form in which Airflow's UI shows a connection: its fields, labels and hints.

    The fields are checked in ``hooks.settings`` and ``protocol.callouts.settings``.
    """
    from airflow_mediation_provider.protocol.zuora.requests import DataCenter

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
                "description": "Data center of the Zuora tenant; a client ID is valid in its own tenant only.",
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
            "meter_names": {
                "label": "Meter names",
                "description": 'Names that the pages show in place of those that are received: {"1001": "Storage"}.',
                "schema": {"type": ["object", "null"]},
            },
            **_callouts(),
        },
    }


def _callouts() -> dict[str, Any]:
    """Return the fields of the callouts, in the order in which Zuora's form has them."""
    return {
        "callout_hmac_secret": _secret(
            "HMAC secret", "If set, callouts must have a valid signature. All configured methods are required."
        ),
        "callout_hmac_previous_secret": _secret(
            "Previous HMAC secret", "Also accepted while you rotate the secret in Zuora; clear it afterwards."
        ),
        "callout_hmac_header": _callout("HMAC header", "Zuora's HMAC key. Empty: X-Mediation-Signature."),
        "callout_hmac_algorithm": _callout("HMAC algorithm", "Empty: SHA-256.", enum=["SHA-256", "SHA-384", "SHA-512"]),
        "callout_hmac_encoding": _callout("HMAC output format", "Empty: BASE64.", enum=["BASE64", "HEX"]),
        "callout_hmac_prefix": _callout("HMAC prefix", "Text in the header before the signature, for example sha256=."),
        "callout_hmac_suffix": _callout("HMAC suffix", "Text in the header after the signature."),
        "callout_hmac_message": _callout(
            "HMAC data",
            "Signed data, as in Zuora's form. Empty: {{Request.Body}}. It may contain {{Request.Headers.<name>}} too.",
        ),
        "callout_username": _callout("Username", "User name for Basic authentication."),
        "callout_password": _secret("Password", "Password for Basic authentication."),
        "callout_previous_password": _secret(
            "Previous password", "Also accepted while you rotate the password in Zuora; clear it afterwards."
        ),
        "callout_token": _secret("Token", "A text that callouts must have in a header that you add in Zuora."),
        "callout_previous_token": _secret(
            "Previous token", "Also accepted while you rotate the token in Zuora; clear it afterwards."
        ),
        "callout_token_header": _callout("Token header", "Empty: X-Mediation-Token."),
        "callout_date_format": _callout(
            "Date format",
            "Format of times in your tenant, for example MM/DD/YYYY hh:mm:ss A. Empty: unambiguous formats only.",
        ),
        "callout_timezone": _callout(
            "Time zone",
            "Zone of times without one, in callouts and in their history, for example Europe/Berlin. Empty: UTC.",
        ),
        "callout_event_category": _callout(
            "Event category",
            "Only records of this event are read from the callout history: namespace:event type, or its number.",
        ),
    }


def _text(label: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"], **schema}}


def _callout(label: str, description: str, **schema: Any) -> dict[str, Any]:
    return _text(label, description, section=_SECTION, **schema)


def _secret(label: str, description: str) -> dict[str, Any]:
    # The UI hides it while it is typed; once stored, Airflow masks it by the field's name.
    return _callout(label, description, format="password")
