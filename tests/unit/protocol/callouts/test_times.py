"""Times in a callout: unambiguous ones are parsed, the rest only with the connection's format."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.callouts.settings import callout_settings
from airflow_mediation_provider.protocol.callouts.tenant_times import names_its_zone, read_time

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
        "2026-03-31T09:17:21,000Z",
        "2026-3-31 11:17:21",
        "2026/3/31 11:17:21",
        "2026.03.31 11:17:21 AM",
        "20260331111721",
        "20260331111721000",
        "20260331T091721Z",
        "20260331T051721-0400",
        "2026-03-31 11:17:21 Europe/Berlin",
        "2026-03-31 11:17:21 [Europe/Berlin]",
        "2026-03-31 05:17:21 (America/New_York)",
        "2026-03-31 11:17:21 CEST",
        "2026-03-31 02:17:21 PDT",
        "2026-03-31 01:17:21 AM PST",
        "2026-03-31 14:47:21 UTC+5:30",
        "2026-03-31 12:17:21 GMT+3",
        "2026-03-31 12:17:21 +03",
        "Tue Mar 31 2026 11:17:21 GMT+0200 (Central European Summer Time)",
        "Tue Mar 31 02:17:21 PDT 2026",
        "31-Mar-2026 11:17:21",
        "31-Mar-2026 11:17:21 AM",
        "31/Mar/2026:11:17:21 +0200",
        "31. March 2026 11:17:21",
        "2026-Mar-31 11:17:21",
        "Mar 31 2026 11:17:21AM",
        "Mar 31, 2026, 11:17:21\u202fAM",
        "31.03.2026 11:17:21",
        "31.03.2026, 11:17:21",
        "31/03/2026 11:17:21",
        "03/31/2026 11:17:21 AM",
        "3/31/2026, 11:17:21 a.m.",
        "1774948641",
        "1774948641.000",
        "1774948641000000",
        "1774948641000000000",
    ],
)
def test_unambiguous_times_are_parsed(text: str) -> None:
    assert read_time(BERLIN, text) == MORNING


@pytest.mark.parametrize(
    "text",
    [
        None, "", "yesterday", "04/05/2026 09:17:21", "05.04.2026 09:17", "Tue Mar 31 09:17:21 CST 2026",
        "25. marrask. 2026 10:00:00", "Marvin 3, 2026 10:00:00", "3 Janitor 2026 10:00:00", "3 Ma 2026 10:00:00",
        "3 juni 2026 10:00:00", "2026-Marec-31 10:00", "0000000000000", "0" * 16, "0" * 10,
        "2026-03-31T09:17:61Z", "2026-03-31 09:17:21 IST", "31. März 2026", "Mar 31, 2026 13:17 PM",
        "Foo 31, 2026 09:17:21",
        "Feb 30, 2026 09:17", "0001-01-01T00:00:00", "12345", "x" * 101, "9999-12-31T23:59:59-12:00", "٢٠٢٦-٠٣-٣١",
"31/03/26 09:17", "25-Apr-26 09:17", "31.13.2026 09:17", "2026-13-01 09:17",
        "2026-03-31 09:17 America/Argentina", "2026-03-31 09:17 Mars/Base", "2026-03-31 09:17:21 +99", "2026033109",
        "2026-03-31 25:17", "Mar 31 09:17:21", "2000000000", "2026-03-31T09:17:21Z and more",
    ],
)  # fmt: skip
def test_ambiguous_times_are_not_parsed(text: str | None) -> None:
    assert read_time(BERLIN, text) is None


def test_each_english_month_is_read_in_full_and_by_its_abbreviations() -> None:
    names = [(calendar.month_name[month], month) for month in range(1, 13)]
    for name, month in [*names, *((name[:3], month) for name, month in names), ("Sept", 9)]:
        for spelled in (name, name.upper(), name.lower(), f"{name}."):
            for text in (f"31 {spelled} 2026 09:17:21", f"{spelled} 31, 2026 09:17:21", f"2026-{spelled}-31 09:17:21"):
                read = read_time(callout_settings("zuora", {}), text.replace("31", "30" if month != 2 else "28"))
                assert read is not None, text
                assert read.month == month


def test_a_leap_second_is_the_last_of_its_minute() -> None:
    assert read_time(BERLIN, "2026-12-31T23:59:60Z") == datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(("form", "text"), [("X", "1774948641"), ("x", "1774948641000"), ("[t] X", "t 1774948641")])
def test_a_format_of_an_epoch_is_read_in_utc(form: str, text: str) -> None:
    settings = callout_settings("zuora", {"callout_timezone": "Europe/Berlin", "callout_date_format": form})

    assert read_time(settings, text) == MORNING
    assert names_its_zone(settings, text)


def test_text_in_a_format_is_no_token() -> None:
    settings = callout_settings(
        "zuora", {"callout_timezone": "Europe/Berlin", "callout_date_format": "DD.MM.YYYY [x] HH:mm:ss"}
    )
    assert read_time(settings, "31.03.2026 x 11:17:21") == MORNING
    settings = callout_settings("zuora", {"callout_date_format": "[x]DD.MM.YYYY"})
    assert read_time(settings, "x31.03.2026") is None


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("DD.MM.YYYY HH:mm:ss", "31.03.2026 11:17:21"),
        ("MM/DD/YYYY hh:mm:ss A", "03/31/2026 11:17:21 AM"),
        ("D/M/YY H:mm:ss", "31/3/26 11:17:21"),
        ("YYYY-MM-DD HH:mm:ss ZZ", "2026-03-31 05:17:21 -0400"),
    ],
)
def test_the_connections_format_is_used(form: str, text: str) -> None:
    settings = callout_settings("zuora", {"callout_timezone": "Europe/Berlin", "callout_date_format": form})

    assert read_time(settings, text) == MORNING
    assert read_time(settings, "2026-03-31T09:17:21Z") == MORNING
    assert read_time(settings, "soon") is None


DATES = [
    "2026-03-31", "20260331", "31.03.2026", "03/31/2026", "Mar 31, 2026", "31 March 2026", "2026/3/31",
    "Tuesday, March 31, 2026",
]  # fmt: skip


@pytest.mark.parametrize("text", DATES)
def test_a_date_alone_is_no_instant(text: str) -> None:
    assert read_time(BERLIN, text) is None


def test_a_date_alone_is_no_instant_by_the_connections_format_either() -> None:
    settings = callout_settings("zuora", {"callout_date_format": "MM/DD/YYYY"})

    assert read_time(settings, "03/31/2026") is None
    assert read_time(settings, "2026-03-31T09:17:21Z") == MORNING


def test_the_name_of_a_zone_is_first_that_of_the_connections_zone() -> None:
    for zone, name, hour in (("America/Chicago", "CDT", 4), ("Asia/Shanghai", "CST", 17), ("Asia/Manila", "PST", 17)):
        settings = callout_settings("zuora", {"callout_timezone": zone})
        assert read_time(settings, f"2026-03-31 {hour:02}:17:21 {name}") == MORNING


@pytest.mark.parametrize(
    ("text", "names"),
    [("2026-03-31T09:17:21Z", True), ("2026-03-31 09:17:21 PDT", True), ("1774948641", True),
     ("2026-03-31 09:17:21", False), ("soon", False), (None, False)],
)  # fmt: skip
def test_whether_a_time_names_its_zone(text: str | None, names: bool) -> None:
    assert names_its_zone(BERLIN, text) is names


FORMS = [
    "%Y-%m-%d %H:%M:%S", "%Y/%m/%d %H:%M:%S", "%d-%b-%Y %I:%M:%S %p", "%b %d, %Y %H:%M:%S", "%A, %d %B %Y %H:%M:%S",
    "%Y%m%d%H%M%S", "%d %b %Y, %H:%M:%S", "%m/%d/%Y %I:%M:%S %p", "%d.%m.%Y %H:%M:%S",
]  # fmt: skip
ZONES = ["UTC", "America/Los_Angeles", "America/St_Johns", "Europe/Berlin", "Asia/Kolkata", "Pacific/Auckland"]


@given(
    st.datetimes(datetime(2001, 1, 2), datetime(2033, 1, 1)).map(lambda time: time.replace(microsecond=0)),
    st.sampled_from(FORMS),
    st.sampled_from(ZONES),
    st.sampled_from(["", "%z", "name"]),
)
def test_a_time_is_read_as_it_was_written_or_not_at_all(time: datetime, form: str, zone: str, suffix: str) -> None:
    local = pendulum.timezone(zone)
    settings = callout_settings("zuora", {"callout_timezone": zone})
    # In the hour that a change of the clocks repeats, only the offset distinguishes the two.
    meant = time.replace(tzinfo=UTC).astimezone(local)
    if suffix != "%z" and meant.replace(fold=0).utcoffset() != meant.replace(fold=1).utcoffset():
        return
    text = meant.strftime(form + {"": "", "%z": " %z", "name": f" {zone}"}[suffix])

    read = read_time(settings, text)

    if form in ("%m/%d/%Y %I:%M:%S %p", "%d.%m.%Y %H:%M:%S") and meant.day <= 12 and meant.day != meant.month:
        assert read is None
    else:
        assert read == time.replace(tzinfo=UTC)


@given(
    st.text(max_size=110)
    | st.from_regex(r"[0-9]{1,4}[-/. ][0-9a-zA-Z]{1,9}[-/. ][0-9]{1,4}[T ][0-9]{1,2}:[0-9]{2}.{0,20}")
)
def test_no_text_raises(text: str) -> None:
    for form in ("", "MM/DD/YYYY hh:mm:ss A", "X"):
        time = read_time(callout_settings("zuora", {"callout_date_format": form}), text)
        assert time is None or time.tzinfo is UTC
