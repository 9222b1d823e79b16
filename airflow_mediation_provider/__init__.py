"""Apache Airflow provider for Zuora Mediation."""

from __future__ import annotations

__version__ = "0.1.0"


def get_provider_info() -> dict[str, object]:
    """Return what Airflow's ProvidersManager reads of this provider."""
    return {
        "package-name": "airflow-mediation-provider",
        "name": "Zuora Mediation",
        "description": "Run Zuora Mediation meters, wait for their sessions, branch on how they end.",
    }
