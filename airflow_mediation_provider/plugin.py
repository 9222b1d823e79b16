"""The plugin that Airflow loads in each of its processes: it mounts the API server's part without importing it."""

from __future__ import annotations

from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from airflow_mediation_provider.api_server import LazyApp, WarmStart
from airflow_mediation_provider.assets import MeterSessionTimetable
from airflow_mediation_provider.protocol.urls import MOUNT, NAV_ROUTE


def _views() -> list[dict[str, str]]:
    """Return the pages that Airflow's UI shows in frames: the list in its navigation, tabs of tasks, runs and Dags.

    A frame's address starts with the path of Airflow behind a proxy; Airflow does not add it.
    """
    mount = urlsplit(conf.get("api", "base_url", fallback=None) or "").path.rstrip("/") + MOUNT
    run = "dag_id={DAG_ID}&run_id={RUN_ID}"
    icon = f"{mount}/static/icon.svg"
    dark = f"{mount}/static/icon-dark.svg"
    return [
        {
            "name": "Meter sessions",
            "href": f"{mount}/sessions",
            "destination": "nav",
            "category": "browse",
            "url_route": NAV_ROUTE,
            "icon": icon,
            "icon_dark_mode": dark,
        },
        {
            "name": "Meter session",
            "href": f"{mount}/task?{run}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}",
            "destination": "task_instance",
            "url_route": "meter-session",
            "icon": icon,
            "icon_dark_mode": dark,
        },
        {
            "name": "Meter sessions",
            "href": f"{mount}/run?{run}",
            "destination": "dag_run",
            "url_route": "meter-sessions",
            "icon": icon,
            "icon_dark_mode": dark,
        },
        {
            "name": "Meters",
            "href": f"{mount}/dag?dag_id={{DAG_ID}}",
            "destination": "dag",
            "url_route": "meters",
            "icon": icon,
            "icon_dark_mode": dark,
        },
    ]


_app = LazyApp()


class MediationPlugin(AirflowPlugin):
    """What this provider adds to Airflow besides operators and the like: a schedule, pages, and an internal API.

    Registered by the entry point group ``airflow.plugins`` only. Airflow reads the plugins of a provider's info only
    where ``[core] lazy_discover_providers`` is off, and would then report this one as registered twice.
    """

    name = "mediation"
    fastapi_apps = [{"app": _app, "url_prefix": MOUNT, "name": "Zuora Mediation"}]  # noqa: RUF012  # Airflow's way
    fastapi_root_middlewares = [  # noqa: RUF012
        {"middleware": WarmStart, "kwargs": {"mounted": _app}, "name": "Zuora Mediation, at the start"}
    ]
    external_views = _views()
    timetables = [MeterSessionTimetable]  # noqa: RUF012
