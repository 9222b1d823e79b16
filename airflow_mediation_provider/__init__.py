"""Apache Airflow provider for Zuora Mediation."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    """Return what Airflow's ProvidersManager reads of this provider; every Airflow process calls it."""
    from airflow_mediation_provider.protocol.data_centers import DataCenter

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
                "python-modules": [f"{package}.operators.{module}" for module in ("audit", "branch", "meter", "stop")],
            }
        ],
        "sensors": [{"integration-name": name, "python-modules": [f"{package}.sensors.meter_session"]}],
        "triggers": [{"integration-name": name, "python-modules": [f"{package}.triggers.meter_session"]}],
        "extra-links": [f"{package}.links.MeterSessionLink"],
        "connection-types": [
            {
                "connection-type": "mediation",
                "hook-class-name": f"{package}.hooks.mediation.MediationHook",
                "hook-name": name,
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
                    "entity_id": {
                        "label": "Entity ID",
                        "description": "Only with Multi-entity, when the OAuth client's user has several entities.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "org_ids": {
                        "label": "Organization IDs",
                        "description": "Only with Multi-Org: ids separated by commas. Empty: all of the user's.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "ui_link_template": {
                        "label": "UI link template",
                        "description": (
                            "Address of a session's page in your tenant, for links in Airflow. Fields: {meter_id}, "
                            "{session_id}, {run_id}, {ui_base}. Copy it from your browser: Zuora documents no address."
                        ),
                        "schema": {"type": ["string", "null"]},
                    },
                },
            }
        ],
    }
