from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock

import pytest

from airflow_mediation_provider.simulator.__main__ import configuration, main, parser, serve
from airflow_mediation_provider.simulator.config import SimulatorConfig
from airflow_mediation_provider.simulator.control import CHANGEABLE
from airflow_mediation_provider.simulator.faults import FaultKind
from airflow_mediation_provider.simulator.server import SimulatorServer

from .conftest import Client

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.services
def test_the_simulator_serves_until_a_signal(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "airflow_mediation_provider.simulator", "--port", "0", "--log-file", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        client = Client(ready["url"])
        assert (ready["event"], ready["pid"], ready["client_id"]) == ("ready", process.pid, "simulator-client")
        assert client.run("1001").json["data"]["sessionId"] == "R-00005468"
        assert len(client.control("GET", "/health").json["meters"]) == len(ready["meters"]) == 11
        client.control("POST", "/faults", {"kind": "hang"})
        client.timeout = 0.5
        with pytest.raises(TimeoutError):
            client.run("1001")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    kinds = [json.loads(line)["kind"] for line in log.read_text().splitlines()]
    assert {"request", "token", "start", "transition", "fault", "control"} <= set(kinds)


def test_the_file_is_overridden_by_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"time_scale": 0.5, "token_life": 60, "meters": [{"id": "7001"}]}))
    given = ["--config", str(file), "--time-scale", "0.1", "--lenient", "--no-mediation", "--rate-limit", "9"]
    config = configuration(parser().parse_args(given))
    assert (config.time_scale, config.token_life, config.rate_limit) == (0.1, 60, 9)
    assert (config.require_content_type, config.strict_track_id, config.mediation_enabled) == (False, False, False)
    assert [meter.id for meter in config.meters] == ["7001"]
    assert len(configuration(parser().parse_args([*given, "--demo"])).meters) == 11


@pytest.mark.parametrize("text", ["{", '{"speed": 2}', '{"meters": [{"id": "x"}]}'])
def test_wrong_settings_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(tmp_path / "a.json")])
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.services
def test_an_address_that_cannot_be_listened_on_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", "203.0.113.1"]) == 1
    assert "cannot serve" in capsys.readouterr().err


def test_help_names_every_fault_and_setting() -> None:
    text = parser().format_help()
    assert {kind for kind in FaultKind if kind not in text} == set()
    options = text.replace("-", "_")
    assert {name for name in CHANGEABLE if name not in options and name not in text} == set()
    assert max(len(line) for line in text.splitlines()) <= 120


async def test_on_an_address_that_others_reach_it_warns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatorServer, "start", AsyncMock(side_effect=OSError("in use")))
    for host in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(OSError, match="in use"):
            await serve(SimulatorConfig(host=host))
        assert ("control the simulator without a login" in capsys.readouterr().err) is (host != "127.0.0.1")
