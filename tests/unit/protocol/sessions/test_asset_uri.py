"""The URI of an asset: the same on both sides, and an error that names the wrong part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mediation_provider.protocol.sessions.asset_uri import (
    ANY_METER,
    SessionAsset,
    arrival_uris,
    asset_uri,
    history_uri,
    is_history_uri,
    is_poll_uri,
    poll_uri,
    read_asset_uri,
)
from airflow_mediation_provider.protocol.status import DEBUG_ONLY, RunType, SessionStatus

NAMES = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(conn_id=NAMES, meter_id=NAMES, status=st.sampled_from(SessionStatus))
def test_a_uri_survives_the_round_trip(conn_id: str, meter_id: str, status: str):
    uri = asset_uri(conn_id, meter_id, status)

    assert read_asset_uri(uri)[:3] == (conn_id, meter_id, status)
    assert not is_poll_uri(uri)
    assert not is_history_uri(uri)


def test_a_status_in_lower_case_is_accepted():
    assert read_asset_uri("mediation://eu/meters/1001/completed")[:3] == ("eu", "1001", "COMPLETED")


@pytest.mark.parametrize(
    ("uri", "wrong"),
    [
        ("s3://bucket/key", "no asset of Zuora Mediation"),
        ("mediation:///meters/1001/COMPLETED", "names no connection"),
        ("mediation://eu/meter/1001/COMPLETED", "mediation://CONNECTION/meters/METER/STATUS"),
        ("mediation://eu/meters/1001", "mediation://CONNECTION/meters/METER/STATUS"),
        ("mediation://eu/meters//COMPLETED", "mediation://CONNECTION/meters/METER/STATUS"),
        ("mediation://eu/meters/1001/COMPLETED?x=1", "after the '[?]' may come previous_status and run_type"),
        ("mediation://eu/meters/1/FAILED?run_type=DEBUG&run_type=DEBUG", "each once"),
        ("mediation://eu/meters/1/FAILED?run_type=TEST", "run_type must be one of NORMAL, DEBUG"),
        ("mediation://eu/meters/1/TESTING_FAILED?run_type=NORMAL", "only DEBUG sessions reach TESTING_FAILED"),
        ("mediation://eu/meters/1/FAILED?previous_status=", "neither a code nor a name"),
        (history_uri("eu", 60), "mediation://CONNECTION/meters/METER/STATUS"),
        (poll_uri("eu", "1001", 60), "mediation://CONNECTION/meters/METER/STATUS"),
    ],
)
def test_the_error_names_the_wrong_part(uri: str, wrong: str):
    with pytest.raises(ValueError, match=wrong):
        read_asset_uri(uri)


def test_the_uri_of_polls():
    assert poll_uri("eu", "1001", 60.0) == "mediation://eu/meters/1001/polls/60"
    assert is_poll_uri("mediation://eu/meters/1001/polls/60")


def test_the_uri_of_the_callout_history():
    assert history_uri("eu 1", 60.0) == "mediation://eu%201/history/60"
    assert is_history_uri("mediation://eu%201/history/60")
    assert not is_history_uri("mediation://eu/history/60/more")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (60, "60"),
        (1234567, "1234567"),
        (1234568.0, "1234568"),
        (0.000025, "0.000025"),
        (90.5, "90.5"),
        (3e6, "3000000"),
    ],
)
def test_the_seconds_of_an_address_are_exact(seconds: float, text: str):
    for uri, known in ((history_uri("eu", seconds), is_history_uri), (poll_uri("eu", "1", seconds), is_poll_uri)):
        assert uri.endswith(f"/{text}")
        assert known(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "mediation://eu/history/abc", "mediation://eu/history/1e6", "mediation://eu/history/", "mediation:///history/60",
        "mediation://eu/history/060", "mediation://eu/history/60.0", "mediation://eu/history/60?a=b",
        "other://eu/history/60", "mediation://eu/meters//polls/30", "mediation://eu/meters/1/polls/soon",
        "mediation://eu/meters/1/polls/-1",
    ],
)  # fmt: skip
def test_an_address_of_another_form_is_neither_of_polls_nor_of_the_history(uri: str):
    assert not is_poll_uri(uri)
    assert not is_history_uri(uri)


STATUSES = st.sampled_from([*SessionStatus, "QUARANTINED"])
RUN_TYPES = st.sampled_from([*RunType, "CANARY"])


def fits(asset: SessionAsset, arrival: SessionAsset) -> bool:
    """What the documents promise, one filter after the other."""
    usual = "DEBUG" if asset.status in DEBUG_ONLY else "NORMAL"
    return (
        asset.conn_id == arrival.conn_id
        and asset.meter_id in (ANY_METER, arrival.meter_id)
        and asset.status == arrival.status
        and asset.previous_status in (None, arrival.previous_status)
        and (asset.run_type or usual) == arrival.run_type
    )


@given(
    asset=st.builds(
        SessionAsset,
        st.sampled_from(["eu", "us"]),
        st.sampled_from(["1", "2", ANY_METER]),
        STATUSES,
        st.none() | STATUSES,
        st.none() | st.just("DEBUG"),
    ),
    arrival=st.builds(
        SessionAsset,
        st.sampled_from(["eu", "us"]),
        st.sampled_from(["1", "2"]),
        STATUSES,
        st.none() | STATUSES,
        RUN_TYPES,
    ),
)
def test_an_arrival_has_the_addresses_of_exactly_the_assets_that_it_fits(asset: SessionAsset, arrival: SessionAsset):
    conn_id, meter_id, status, previous, run_type = arrival
    addresses = arrival_uris(conn_id, meter_id, status, previous_status=previous, run_type=str(run_type))

    assert (asset_uri(*asset) in addresses) is fits(asset, arrival)
    assert len(addresses) == len(set(addresses)) <= 4


@pytest.mark.parametrize(
    ("asset", "uri"),
    [
        (("eu", "1", "FAILED", "RUNNING"), "mediation://eu/meters/1/FAILED?previous_status=RUNNING"),
        (("eu", "*", "FAILED", None, "DEBUG"), "mediation://eu/meters/*/FAILED?run_type=DEBUG"),
        (
            ("eu", "*", "CANCELED", "RUNNING", "DEBUG"),
            "mediation://eu/meters/*/CANCELED?previous_status=RUNNING&run_type=DEBUG",
        ),
        (("eu", "1", "FAILED", None, "NORMAL"), "mediation://eu/meters/1/FAILED"),
        (("eu", "1", "TESTING_FAILED", None, "DEBUG"), "mediation://eu/meters/1/TESTING_FAILED"),
    ],
)
def test_filters_have_one_spelling(asset: tuple[str, ...], uri: str):
    assert asset_uri(*asset) == uri
    assert asset_uri(*read_asset_uri(uri)) == uri


def test_a_meter_that_is_really_called_so_is_not_every_meter():
    addresses = arrival_uris("eu", "*", "FAILED", previous_status=None, run_type="NORMAL")

    assert addresses == ("mediation://eu/meters/%2A/FAILED", "mediation://eu/meters/*/FAILED")
