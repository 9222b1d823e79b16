"""The worker's side of pruning, against answers of an API server."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_mediation_provider.exceptions import MediationMisconfigured, TransientError
from airflow_mediation_provider.feed.flow import FeedUnavailableError
from airflow_mediation_provider.feed.worker import WorkerFeedClient
from airflow_mediation_provider.operators.prune import PruneJournalOperator
from airflow_mediation_provider.protocol.maintenance import PRUNE_PATH, Pruned, PruneReply, PruneRequest
from airflow_mediation_provider.protocol.zuora.errors import MisconfigurationError


class Server:
    """Takes the place of `WorkerFeedClient.call`: answers in turn, or raises."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[tuple[str, float]] = []

    def call(self, path: str, body: bytes) -> bytes:
        self.asked.append((path, PruneRequest.from_bytes(body).older_than_days))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(WorkerFeedClient, "call", lambda _self, path, body: made.call(path, body))
    return made


def test_requests_are_sent_until_nothing_is_left(server: Server) -> None:
    server.answers = [
        PruneReply(Pruned(sessions=5, changes=40, waits=2, needed=1), done=False).to_bytes(),
        PruneReply(Pruned(sessions=3, changes=20, others=7, needed=2), done=True).to_bytes(),
    ]

    result = PruneJournalOperator(task_id="task", older_than_days=30).execute({})

    assert result == {"sessions": 8, "changes": 60, "others": 7, "waits": 2, "needed": 2}
    assert server.asked == [(PRUNE_PATH, 30.0)] * 2


@pytest.mark.parametrize("trouble", [FeedUnavailableError("http://airflow answered 503"), b"<html>"])
def test_the_deleted_sessions_are_reported_when_the_server_fails(server: Server, trouble: Any) -> None:
    server.answers = [PruneReply(Pruned(sessions=5), done=False).to_bytes(), trouble]

    with pytest.raises(TransientError, match=r"stopped deleting after 5 sessions .*(503|cannot be read)"):
        PruneJournalOperator(task_id="task").execute({})


def test_a_misconfigured_connection_is_not_retried(server: Server) -> None:
    server.answers = [MisconfigurationError("the connection has no client secret")]

    with pytest.raises(MediationMisconfigured, match="no client secret"):
        PruneJournalOperator(task_id="task").execute({})


@pytest.mark.parametrize("days", [13, 0, float("nan"), "90", None, True])
def test_too_few_days_are_refused_when_the_dag_is_parsed(days: Any) -> None:
    with pytest.raises(ValueError, match=r"at least 14|must be a number"):
        PruneJournalOperator(task_id="task", older_than_days=days)


def test_an_empty_connection_id_is_refused() -> None:
    with pytest.raises(ValueError, match="mediation_conn_id must not be empty"):
        PruneJournalOperator(task_id="task", mediation_conn_id=" ")
