"""Which Airflow this is, where what it can do depends on it."""

from __future__ import annotations

from typing import Final

from airflow import __version__


def _minor_version(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


AIRFLOW_V_3_3_PLUS: Final = _minor_version(__version__) >= (3, 3)
"""A task state store, ``on_kill`` of triggers, and templates in triggers that start without a worker."""
