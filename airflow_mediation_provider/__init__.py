"""Apache Airflow provider for Zuora Mediation."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    """Return what Airflow's ProvidersManager reads of this provider; every Airflow process calls it."""
    from airflow_mediation_provider.connection_form import connection_type

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
                "python-modules": [f"{package}.triggers.meter_session", f"{package}.triggers.meter_watch"],
            }
        ],
        "extra-links": [f"{package}.links.MeterSessionPageLink", f"{package}.links.MeterSessionLink"],
        "connection-types": [connection_type()],
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
                "Seconds between two looks at a meter's status while callouts arrive; a longer poke_interval counts."
            ),
            "version_added": None,
            "type": "integer",
            "example": None,
            "default": "300",
        },
    }
