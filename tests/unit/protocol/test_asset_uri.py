"""The address of an asset: the same from both ends, and an error that says which part is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.asset_uri import asset_uri, is_poll_uri, poll_uri, read_asset_uri
from airflow_mediation_provider.protocol.status import SessionStatus

NAMES = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(conn_id=NAMES, meter_id=NAMES, status=st.sampled_from(SessionStatus))
def test_what_is_written_is_read(conn_id: str, meter_id: str, status: str):
    uri = asset_uri(conn_id, meter_id, status)

    assert read_asset_uri(uri) == (conn_id, meter_id, status)
    assert not is_poll_uri(uri)


def test_a_status_in_small_letters_is_the_same_one():
    assert read_asset_uri("mediation://eu/meters/1001/completed") == ("eu", "1001", "COMPLETED")


@pytest.mark.parametrize(
    ("uri", "wrong"),
    [
        ("s3://bucket/key", "no asset of Zuora Mediation"),
        ("mediation:///meters/1001/COMPLETED", "names no connection"),
        ("mediation://eu/meter/1001/COMPLETED", "mediation://CONNECTION/meters/METER/STATUS"),
        ("mediation://eu/meters/1001", "mediation://CONNECTION/meters/METER/STATUS"),
        ("mediation://eu/meters//COMPLETED", "mediation://CONNECTION/meters/METER/STATUS"),
        ("mediation://eu/meters/1001/COMPLETED?x=1", "mediation://CONNECTION/meters/METER/STATUS"),
        ("mediation://eu/meters/1001/DONE", "status must be one of NEVER_RUN, .*, not 'DONE'"),
        (poll_uri("eu", "1001", 60), "mediation://CONNECTION/meters/METER/STATUS"),
    ],
)
def test_the_error_says_what_is_wrong(uri: str, wrong: str):
    with pytest.raises(ValueError, match=wrong):
        read_asset_uri(uri)


def test_the_address_of_polls():
    assert poll_uri("eu", "1001", 60.0) == "mediation://eu/meters/1001/polls/60"
    assert is_poll_uri("mediation://eu/meters/1001/polls/60")
