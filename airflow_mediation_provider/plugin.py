"""The plugin that Airflow loads in each of its processes: it mounts the API server's part, and imports none of it."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from airflow_mediation_provider.api_server import LazyApp
from airflow_mediation_provider.assets import MeterSessionTimetable


class MediationPlugin(AirflowPlugin):
    """What this provider adds to Airflow beside operators and the like: a schedule, and the paths under ``/mediation``.

    Found by the entry point group ``airflow.plugins`` alone. Airflow reads the plugins of a provider's info only where
    ``[core] lazy_discover_providers`` is off, and would then report this one as registered twice.
    """

    name = "mediation"
    fastapi_apps = [{"app": LazyApp(), "url_prefix": "/mediation", "name": "Zuora Mediation"}]  # noqa: RUF012  # Airflow's way
    timetables = [MeterSessionTimetable]  # noqa: RUF012
