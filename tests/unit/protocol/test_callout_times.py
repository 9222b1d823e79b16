"""Times in a callout: what reads in one way only is read, the rest by the connection's format, or not at all."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.callout_settings import callout_settings
from airflow_mediation_provider.protocol.callout_times import read_time

BERLIN = callout_settings("zuora", {"callout_timezone": "Europe/Berlin"})
MORNING = datetime(2026, 3, 31, 9, 17, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-31T09:17:21Z",
        "2026-03-31T09:17:21.000000000Z",
        "2026-03-31T09:17:21+0000",
        "2026-03-31T05:17:21-04:00",
        "2026-03-31T11:17:21",
        "2026-03-31 11:17:21",
        "2026/03/31 11:17:21",
        "2026-03-31 09:17:21 UTC",
        "2026-03-31T11:17:21+02:00[Europe/Berlin]",
        "1774948641000",
        "Mar 31, 2026 11:17:21 AM",
        "Mar 31, 2026, 11:17:21 AM",
        "March 31, 2026 at 11:17:21 AM",
        "31 Mar 2026 11:17:21",
        "Tue, 31 Mar 2026 09:17:21 GMT",
        "Tue Mar 31 09:17:21 UTC 2026",
        "Tuesday, March 31, 2026 11:17:21",
    ],
)
def test_what_reads_in_one_way(text: str) -> None:
    assert read_time(BERLIN, text) == MORNING


@pytest.mark.parametrize(
    "text",
    [
        None, "", "yesterday", "03/31/2026 09:17:21", "31.03.2026 09:17", "Tue Mar 31 09:17:21 PDT 2026",
        "31. März 2026", "Mar 31, 2026 13:17 PM", "Foo 31, 2026 09:17:21", "Feb 30, 2026 09:17", "0001-01-01T00:00:00",
        "12345", "x" * 65, "9999-12-31T23:59:59-12:00", "٢٠٢٦-٠٣-٣١",
    ],
)  # fmt: skip
def test_what_does_not(text: str | None) -> None:
    assert read_time(BERLIN, text) is None


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("DD.MM.YYYY HH:mm:ss", "31.03.2026 11:17:21"),
        ("MM/DD/YYYY hh:mm:ss A", "03/31/2026 11:17:21 AM"),
        ("D/M/YY H:mm:ss", "31/3/26 11:17:21"),
        ("YYYY-MM-DD HH:mm:ss ZZ", "2026-03-31 05:17:21 -0400"),
    ],
)
def test_the_connections_format(form: str, text: str) -> None:
    settings = callout_settings("zuora", {"callout_timezone": "Europe/Berlin", "callout_date_format": form})

    assert read_time(settings, text) == MORNING
    assert read_time(settings, "2026-03-31T09:17:21Z") == MORNING
    assert read_time(settings, "soon") is None


@given(st.text(max_size=70))
def test_no_text_breaks_it(text: str) -> None:
    for form in ("", "MM/DD/YYYY hh:mm:ss A", "X"):
        time = read_time(callout_settings("zuora", {"callout_date_format": form}), text)
        assert time is None or time.tzinfo is UTC
