"""The plugin: found by Airflow in every process, and free for those that serve no requests."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from airflow_mediation_provider import get_provider_info
from airflow_mediation_provider.api_server import LazyApp
from airflow_mediation_provider.plugin import MediationPlugin


def test_airflow_finds_it_by_its_entry_point():
    [found] = [each for each in entry_points(group="airflow.plugins") if each.name == "mediation"]

    assert found.load() is MediationPlugin


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_airflow_loads_it_once_and_mounts_its_app():
    from airflow import plugins_manager

    plugins, errors = plugins_manager._get_plugins()
    apps, _ = plugins_manager.get_fastapi_plugins()

    assert [plugin.name for plugin in plugins].count("mediation") == 1
    assert errors == {}
    [app] = [each for each in apps if each["url_prefix"] == "/mediation"]
    assert isinstance(app["app"], LazyApp)


def test_only_the_entry_point_names_it():
    """Both at once make Airflow report it as registered twice, where providers are not discovered lazily."""
    assert "plugins" not in get_provider_info()


def test_loading_it_brings_nothing_along():
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
