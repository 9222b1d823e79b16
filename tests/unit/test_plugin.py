"""The plugin: Airflow finds it in every process, and it costs nothing in those that serve no requests."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_mediation_provider import get_provider_info, plugin
from airflow_mediation_provider.api_server import LazyApp, WarmStart, pages
from airflow_mediation_provider.api_server.app import create_app
from airflow_mediation_provider.plugin import MediationPlugin
from airflow_mediation_provider.protocol.urls import NAV_ROUTE
from tests.unit.api_server.routes import each_route


def test_airflow_finds_the_plugin_by_its_entry_point():
    [found] = [each for each in entry_points(group="airflow.plugins") if each.name == "mediation"]

    assert found.load() is MediationPlugin


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_airflow_loads_the_plugin_once_and_mounts_its_app():
    from airflow import plugins_manager

    plugins, errors = plugins_manager._get_plugins()
    apps, middlewares = plugins_manager.get_fastapi_plugins()

    assert [plugin.name for plugin in plugins].count("mediation") == 1
    assert errors == {}
    [app] = [each for each in apps if each["url_prefix"] == "/mediation"]
    assert isinstance(app["app"], LazyApp)
    [start] = [each["kwargs"] for each in middlewares if each["middleware"] is WarmStart]
    assert start["mounted"] is app["app"]


def test_only_the_entry_point_registers_the_plugin():
    """With both, Airflow would report it as registered twice, where providers are not discovered lazily."""
    assert "plugins" not in get_provider_info()


@pytest.mark.services
def test_loading_the_plugin_imports_nothing_else():
    code = (
        "import sys, airflow.plugins_manager; before = set(sys.modules);"
        "import airflow_mediation_provider.plugin; print(*sorted(set(sys.modules) - before))"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    foreign = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name for name in foreign if name.partition(".")[0] != "airflow_mediation_provider"} == set()
    assert {name for name in foreign if name.startswith("airflow_mediation_provider.api_server")} == {
        "airflow_mediation_provider.api_server"
    }


@pytest.mark.parametrize(("base_url", "path"), [(None, ""), ("https://airflow.example/team/airflow/", "/team/airflow")])
def test_the_addresses_of_the_pages_start_with_the_path_of_airflow(monkeypatch, base_url, path):
    if base_url is None:
        monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
    else:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)

    views = plugin._views()

    assert [view["href"] for view in views] == [
        f"{path}/mediation/sessions",
        f"{path}/mediation/task?dag_id={{DAG_ID}}&run_id={{RUN_ID}}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}",
        f"{path}/mediation/run?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
        f"{path}/mediation/dag?dag_id={{DAG_ID}}",
    ]
    assert {view[icon] for view in views for icon in ("icon", "icon_dark_mode")} == {
        f"{path}/mediation/static/icon.svg",
        f"{path}/mediation/static/icon-dark.svg",
    }


def test_airflows_api_accepts_the_views():
    from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse

    views = [ExternalViewResponse.model_validate(view) for view in MediationPlugin.external_views]

    assert [(view.destination, view.category) for view in views] == [
        ("nav", "browse"),
        ("task_instance", None),
        ("dag_run", None),
        ("dag", None),
    ]
    known = ExternalViewResponse.model_fields
    assert [name for view in MediationPlugin.external_views for name in view if name not in known] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_airflow_keeps_all_views_and_the_links_use_the_one_in_the_navigation():
    """Airflow drops views with the route of another view, and views without one."""
    from airflow import plugins_manager

    views, _ = plugins_manager._get_ui_plugins()
    ours = [view for view in views if "/mediation/" in view["href"]]

    assert ours == MediationPlugin.external_views
    assert [view["url_route"] for view in ours if view["destination"] == "nav"] == [NAV_ROUTE]


def test_the_pages_and_icons_of_the_views_are_served():
    """The pages by routes of the application, and the icons by files."""
    app = create_app()
    routes = {route.path for route in each_route(app.routes) if "GET" in (getattr(route, "methods", None) or ())}
    for view in MediationPlugin.external_views:
        assert urlsplit(view["href"]).path.removeprefix("/mediation") in routes
        for icon in (view["icon"], view["icon_dark_mode"]):
            assert (Path(pages.__file__).parent / icon.removeprefix("/mediation/")).is_file()
