"""The browser of the tests: the machine's own, else the distribution's package, else a sentence on what to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from demo.browser import NoBrowserError, executable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is all of PATH; whoever asks is root."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


@pytest.fixture
def command(path: Path) -> Callable[[str, str], Path]:
    def make(name: str, script: str = "") -> Path:
        file = path / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    return make


def test_the_one_that_is_there_is_taken_and_nothing_installed(command: Callable[..., Path]) -> None:
    command("apt-get", "exit 1")
    chrome = command("google-chrome")
    assert executable() == str(chrome)
    chromium = command("chromium")
    assert executable() == str(chromium)


def test_root_gets_the_distributions_package(
    path: Path, command: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    # Nothing but the shell's own commands is on PATH.
    installs = f"echo >{path}/chromium; /bin/chmod 755 {path}/chromium"
    command("apt-get", f'echo "$DEBIAN_FRONTEND $@" >>{path}/calls; {installs}')

    assert executable() == str(path / "chromium")

    assert (path / "calls").read_text().splitlines() == [
        "noninteractive --quiet update",
        "noninteractive --quiet install --yes --no-install-recommends chromium",
    ]
    assert "installing" in capfd.readouterr().out


def test_a_package_that_cannot_be_installed_is_said(command: Callable[..., Path]) -> None:
    command("apt-get", 'if [ "$2" = install ]; then echo reading; echo "E: no such package"; exit 100; fi')
    with pytest.raises(NoBrowserError, match=r"apt-get install failed \(E: no such package\): install Chromium or Chr"):
        executable()


def test_a_package_without_a_browser_is_said(command: Callable[..., Path]) -> None:
    command("apt-get")
    with pytest.raises(NoBrowserError, match=r"brought no browser: install Chromium or Chrome .*google-chrome"):
        executable()


def test_who_may_not_install_is_told_what_to_do(command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    command("apt-get", "exit 1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoBrowserError, match=r"^no browser is installed: install Chromium or Chrome"):
        executable()


@pytest.mark.usefixtures("path")
def test_a_machine_without_apt_is_told_what_to_do() -> None:
    with pytest.raises(NoBrowserError, match=r"^no browser is installed: install Chromium or Chrome"):
        executable()
