from __future__ import annotations

import fcntl
import time

import pytest
from sqlalchemy import make_url

from airflow_mediation_provider.journal.transaction import writers_turn


def turn(url, seconds=0.02):
    return writers_turn(make_url(url), time.monotonic() + seconds)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'airflow.db'}"


@pytest.mark.parametrize("who", ["lock", "next"])
def test_another_process_that_writes_or_is_next_goes_first(url, tmp_path, who):
    with turn(url):
        pass
    with (tmp_path / f"airflow.db-mediation-{who}").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="other processes"), turn(url):
            pytest.fail("entered")
        fcntl.flock(other, fcntl.LOCK_UN)
        with turn(url):
            pass


def test_a_writer_lets_another_process_be_next(url, tmp_path):
    with turn(url), (tmp_path / "airflow.db-mediation-next").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_threads_take_turns_too(url):
    with turn(url), pytest.raises(TimeoutError, match="other threads"), turn(url):
        pytest.fail("entered")
    with turn(url):
        pass


@pytest.mark.parametrize("other", ["postgresql://host/airflow", "mysql://host/airflow"])
def test_other_databases_need_no_turns(other):
    with turn(other), turn(other):
        pass


def test_a_turn_ends_with_any_exception_of_its_holder(url):
    with pytest.raises(ZeroDivisionError), turn(url):
        1 / 0  # noqa: B018
    with turn(url):
        pass
