"""The version of Airflow, where features depend on it."""

from __future__ import annotations

from typing import Final

from airflow import __version__

from airflow_mediation_provider.protocol import urls


def _minor_version(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


AIRFLOW_V_3_3_PLUS: Final = _minor_version(__version__) >= (3, 3)
"""A task state store; triggers' ``on_kill``, and templates where they start without a worker; page paths in frames."""


def framed(base: str, page: str) -> str:
    """Return the address at which Airflow shows a page with its navigation around it.

    Airflow 3.2 always shows the list in its frame, also for the address of another page; there a page is shown alone.

    :param base: the address or the path of Airflow
    :param page: the page's address, with the same base
    """
    return urls.framed(base, page) if AIRFLOW_V_3_3_PLUS else page
