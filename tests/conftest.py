"""Whoever runs pytest, however: Airflow's home is not the user's."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("AIRFLOW_HOME", str(Path(__file__).parents[1] / ".pytest_cache" / "airflow"))
