from __future__ import annotations

import json

import pytest

from airflow_mediation_provider.protocol.maintenance import (
    Pruned,
    PruneReply,
    PruneRequest,
)

PRUNED = Pruned(sessions=1234, changes=9876, others=5, waits=4, needed=3)


def test_messages_survive_the_round_trip() -> None:
    for message in (PruneRequest(90), PruneReply(PRUNED, done=False), PruneReply(PRUNED, done=True)):
        assert type(message).from_bytes(message.to_bytes()) == message


def test_the_counts_read_as_part_of_a_sentence() -> None:
    assert str(PRUNED) == (
        "1,234 sessions with 9,876 changes of status, 5 other records, 4 waits; 3 sessions stay for waits that go on"
    )
    assert "stay" not in str(Pruned())


@pytest.mark.parametrize("days", [13.9, -1, "90", None, True, [], float("nan")])
def test_a_request_that_keeps_too_little_is_refused(days: object) -> None:
    with pytest.raises(ValueError, match=r"at least 14|Expected `float`"):
        PruneRequest.from_bytes(json.dumps({"protocol": 1, "older_than_days": days}).encode())


@pytest.mark.parametrize("data", [b"", b"<html>", b"[]", b"1", b"{}", b'{"protocol": 2}', b"\xff", b"[" * 100_000])
def test_an_invalid_message_is_a_value_error(data: bytes) -> None:
    for read in (PruneRequest.from_bytes, PruneReply.from_bytes):
        with pytest.raises(ValueError, match=r"^the prune re(quest|ply) cannot be read"):
            read(data)


@pytest.mark.parametrize("pruned", [None, 5, {"sessions": "x"}, {"sessions": None}])
def test_a_reply_without_its_counts_is_refused(pruned: object) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        PruneReply.from_bytes(json.dumps({"protocol": 1, "pruned": pruned, "done": True}).encode())
