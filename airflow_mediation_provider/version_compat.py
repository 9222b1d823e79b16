"""Which Airflow this runs on; features of 3.3 are used only where it says so."""

from __future__ import annotations

from typing import Final

from airflow import __version__ as airflow_version
from packaging.version import Version

AIRFLOW_V_3_3_PLUS: Final = Version(Version(airflow_version).base_version) >= Version("3.3.0")
