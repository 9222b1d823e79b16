"""The addresses of the pages and of callouts: an id with any characters survives the round trip."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.urls import (
    address,
    callout_address,
    framed,
    session_of_page,
    session_page,
    takes_callouts_of,
    task_page,
)

BASES = ["", "/airflow", "https://airflow.example", "https://airflow.example:8443/team/airflow"]
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def parameters(page: str) -> dict[str, str]:
    asked = parse_qs(urlsplit(page).query, strict_parsing=True, errors="strict")
    assert all(len(values) == 1 for values in asked.values())
    return {name: value for name, (value,) in asked.items()}


@pytest.mark.parametrize("base", BASES)
def test_a_page_is_under_the_base_path_of_airflow(base: str) -> None:
    assert session_page(base, "zuora", "1001", "R-1") == f"{base}/mediation/session?conn=zuora&meter=1001&session=R-1"
    assert address(base, "/sessions") == f"{base}/mediation/sessions"


@given(ids, ids, ids)
def test_any_id_survives_the_round_trip_through_the_address(conn: str, meter: str, session: str) -> None:
    page = session_page("/airflow", conn, meter, session)
    assert page.isascii()
    assert page.isprintable()
    assert not set(page) & set("\"'<> {}\\")
    assert urlsplit(page).path == "/airflow/mediation/session"
    assert urlsplit(page).fragment == ""
    assert parameters(page) == {"conn": conn, "meter": meter, "session": session}
    assert session_of_page(page) == {"mediation_conn_id": conn, "meter_id": meter, "session_id": session}
    assert session_of_page(framed("/airflow", page)) == session_of_page(page)


def test_a_plus_in_a_run_id_does_not_become_a_space() -> None:
    page = task_page("", "load", "manual__2026-03-31T09:00:00+00:00", "group.wait", 3)
    assert "+00" not in page
    assert parameters(page) == {
        "dag_id": "load",
        "run_id": "manual__2026-03-31T09:00:00+00:00",
        "task_id": "group.wait",
        "map_index": "3",
    }


def test_only_a_mapped_task_has_a_map_index_in_its_address() -> None:
    assert parameters(task_page("", "d", "r", "t", 0))["map_index"] == "0"
    assert "map_index" not in parameters(task_page("", "d", "r", "t", -1))


def test_empty_parameters_are_left_out_but_zero_is_not() -> None:
    assert address("", "/sessions", conn="", meter=None, before="1-2") == "/mediation/sessions?before=1-2"
    assert address("", "/sessions", count=0) == "/mediation/sessions?count=0"


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("", "/plugin/mediation-sessions/mediation/sessions?meter=1"),
        ("/airflow", "/airflow/plugin/mediation-sessions/airflow/mediation/sessions?meter=1"),
        ("https://airflow.example", "https://airflow.example/plugin/mediation-sessions/mediation/sessions?meter=1"),
        (
            "https://airflow.example/airflow",
            "https://airflow.example/airflow/plugin/mediation-sessions/airflow/mediation/sessions?meter=1",
        ),
    ],
)
def test_a_framed_address_has_the_pages_path_after_the_name_of_the_frame(base: str, expected: str) -> None:
    """Airflow makes the frame's address from it: a slash, and the text after the name."""
    assert framed(base, address(base, "/sessions", meter="1")) == expected


@given(ids, ids, ids, st.sampled_from(BASES))
def test_the_frame_shows_the_same_page(conn: str, meter: str, session: str, base: str) -> None:
    page = session_page(base, conn, meter, session)
    outer = framed(base, page)
    shown = "/" + outer.removeprefix(f"{base}/plugin/mediation-sessions/")
    assert shown == urlsplit(page)._replace(scheme="", netloc="").geturl()


@pytest.mark.parametrize("conn_id", ["zuora", "a b", "team/zuora", "50%2Fä"])
@given(st.sampled_from(BASES[1:]), st.sampled_from(["", "/", "/mediation", "/mediation/"]))
def test_the_address_of_callouts_reaches_the_connection(conn_id: str, base: str, end: str) -> None:
    made = callout_address(base + end, conn_id)

    assert made.startswith(f"{base}/mediation/callouts/")
    assert takes_callouts_of(made, conn_id)
    assert callout_address(made, "another") == made
