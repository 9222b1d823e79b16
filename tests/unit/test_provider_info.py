"""The provider info: valid by Airflow's schema, read through Airflow's managers, and cheap."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import airflow
import pytest
from airflow.providers_manager import ProvidersManager
from jsonschema import Draft7Validator

from airflow_mediation_provider import __version__, get_provider_info
from airflow_mediation_provider.hooks.mediation import MediationHook
from airflow_mediation_provider.hooks.settings import KNOWN_EXTRA
from airflow_mediation_provider.protocol.callouts.settings import CALLOUT_EXTRA, SECRET_FIELDS
from airflow_mediation_provider.protocol.zuora.requests import DataCenter

INFO = get_provider_info()
FOLDER = Path(airflow.__file__).parent


@pytest.fixture(scope="module")
def manager():
    found = ProvidersManager()
    found.initialize_providers_hooks()
    return found


def test_the_provider_info_is_valid_by_airflows_schema():
    schema = json.loads((FOLDER / "provider_info.schema.json").read_text())

    assert [error.message for error in Draft7Validator(schema).iter_errors(INFO)] == []


def test_the_connection_type_is_valid_by_the_schema_of_provider_yaml():
    properties = json.loads((FOLDER / "provider.yaml.schema.json").read_text())["properties"]

    errors = Draft7Validator(properties["connection-types"]).iter_errors(INFO["connection-types"])

    assert [error.message for error in errors] == []


def test_airflow_finds_the_package(manager):
    assert manager.providers["airflow-mediation-provider"].version == __version__


@pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")
def test_airflow_finds_the_hook(manager):
    hook = manager.hooks["mediation"]

    assert hook.hook_class_name == f"{MediationHook.__module__}.{MediationHook.__name__}"
    assert (hook.connection_id_attribute_name, hook.hook_name) == ("mediation_conn_id", "Zuora Mediation")


def test_the_connection_form_has_its_labels_and_choices(manager):
    fields = {
        widget.field_name: widget
        for name, widget in manager.connection_form_widgets.items()
        if name.startswith("extra__mediation__")
    }
    own = ["data_center", "entity_id", "org_ids", "ui_link_template", "meter_names"]
    assert list(fields)[: len(own)] == own
    assert set(fields) - set(own) == CALLOUT_EXTRA
    assert {name for name, widget in fields.items() if widget.is_sensitive} == SECRET_FIELDS
    choice = fields["data_center"].field["schema"]
    assert choice["enum"] == list(DataCenter.__members__)
    assert choice["values_display"]["PROD_EU"] == "EU Production (rest.eu.zuora.com)"

    behaviour = manager.field_behaviours["mediation"]
    assert behaviour["hidden_fields"] == ["schema", "port"]
    assert behaviour["relabeling"] == {
        "login": "Client ID",
        "password": "Client secret",
        "host": "REST base URL (overrides the data center)",
    }


def test_the_ui_gets_the_connection_form():
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    [meta] = [hook for hook in HookMetaService.hook_meta_data() if hook.connection_type == "mediation"]

    assert meta.standard_fields.url_schema.hidden
    assert meta.standard_fields.login.title == "Client ID"
    assert set(meta.extra_fields) <= KNOWN_EXTRA


@pytest.mark.parametrize("kind", ["hooks", "operators", "sensors", "triggers"])
def test_each_listed_module_exists(kind):
    modules = [module for entry in INFO[kind] for module in entry["python-modules"]]

    assert [module for module in modules if find_spec(module) is None] == []


def test_every_operator_is_in_a_listed_module():
    named = {module for entry in INFO["operators"] for module in entry["python-modules"]}
    folder = Path(str(find_spec("airflow_mediation_provider.operators").submodule_search_locations[0]))
    written = {path.stem for path in folder.glob("*.py") if re.search(r"^class \w+Operator\(", path.read_text(), re.M)}

    assert {module.rpartition(".")[2] for module in named} == written


@pytest.mark.services
def test_the_provider_info_imports_only_the_standard_library():
    """Every Airflow process reads it."""
    code = (
        "import sys; before = set(sys.modules); from airflow_mediation_provider import get_provider_info;"
        "get_provider_info(); print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert [name for name in loaded if name not in sys.stdlib_module_names] == ["airflow_mediation_provider"]
