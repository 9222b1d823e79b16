"""The demo as a user starts it: after every kind of stop, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.processes import processes_in, wait_until
from testkit.stage import PROJECT


def demo(root: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "demo", "--root", str(root), *more],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def left(root: Path) -> list[int]:
    return processes_in(root / "stack") + processes_in(root / "simulator")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_nothing_behind(tmp_path: Path, sig: int) -> None:
    root = tmp_path / "demo"
    process = demo(root)
    wait_until(lambda: len(left(root)) >= 5, timeout=60, what="Airflow's components")
    started = left(root)
    os.kill(process.pid, sig)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in output
    assert not root.exists()
    assert left(root) == []
    assert [pid for pid in started if Path(f"/proc/{pid}/cwd").exists()] == []


def test_processes_of_a_killed_demo_are_ended_by_the_next(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    first = demo(root)
    wait_until(lambda: len(left(root)) >= 2, timeout=60, what="Airflow's processes")
    # A second one in the same directory does not touch them.
    second = demo(root)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "already" in output
    orphans = left(root)
    assert orphans
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=10)
    assert left(root)

    third = demo(root)
    wait_until(lambda: not set(orphans) & set(left(root)), timeout=60, what="the orphans to be gone")
    os.kill(third.pid, signal.SIGTERM)
    third.communicate(timeout=60)
    assert not root.exists()
    assert left(root) == []
