"""Ids given by users: an invalid one is refused in the same way for every argument."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_mediation_provider.protocol.ids import LONGEST_ID, connection_id_of, id_of


@pytest.mark.parametrize(
    ("given", "taken"),
    [("1001", "1001"), (" 1001\n", "1001"), (1001, "1001"), ("R-00005468", "R-00005468"), ("0.0.1", "0.0.1")],
)
def test_surrounding_blanks_of_an_id_are_removed(given: Any, taken: str) -> None:
    assert id_of("meter_id", given) == taken


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "meter_id must not be empty"),
        (" \n", "meter_id must not be empty"),
        ("None", "meter_id is 'None', which names nothing"),
        (" null ", "meter_id is 'null', which names nothing"),
        (True, "meter_id must be a text, not True"),
        (1.5, "meter_id must be a text, not 1.5"),
        ({"meter_id": "1001"}, "meter_id must be a text, not {'meter_id': '1001'}"),
        (["1001"], "meter_id must be a text, not ['1001']"),
        ("{'meter_id': '1001'}", "not \"{'meter_id': '1001'}\""),
        ("https://zuora.example/meters/1001", "not 'https://zuora.example/meters/1001'"),
        ("1,010", "not '1,010'"),
        ("1001 1002", "not '1001 1002'"),
        ("*", "not '*'"),
        ("..", "not '..'"),
        ("10\x0001", "not '10\\x0001'"),
        ("{{ params.meter }}", "not '{{ params.meter }}'"),
        ("9" * (LONGEST_ID + 1), "of at most 64 letters"),
    ],
)
def test_an_invalid_id_is_refused_in_one_sentence(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"^meter_id ") as caught:
        id_of("meter_id", given)

    assert words in str(caught.value)


@pytest.mark.parametrize("given", ["mediation_default", " zuora/eu ", "a.b:c#(1)!", "a..b/...", "x" * 250])
def test_connection_ids_that_airflow_accepts_are_accepted(given: str) -> None:
    assert connection_id_of("mediation_conn_id", given) == given.strip()


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "None",
        5,
        {"a": 1},
        "two parts",
        "https://zuora.example",
        "x" * 251,
        "a\x00b",
        "..",
        ".",
        "a/../mediation_default",
        "./zuora",
        "a\\..\\b",
        "a/..",
    ],
)
def test_an_invalid_connection_id_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="mediation_conn_id"):
        connection_id_of("mediation_conn_id", given)
