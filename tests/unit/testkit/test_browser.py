"""The browser of the tests: the machine's own, else the distribution's package, else an error with what to install."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from testkit.browser import NoBrowserError, executable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is all of PATH, for a process of root."""
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


def test_an_installed_browser_is_used_and_nothing_is_installed(command: Callable[..., Path]) -> None:
    command("apt-get", "exit 1")
    chrome = command("google-chrome")
    assert executable() == str(chrome)
    chromium = command("chromium")
    assert executable() == str(chromium)


@pytest.mark.services
def test_root_gets_the_distributions_package(
    path: Path, command: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    # PATH has no other commands, only the shell's own ones work.
    installs = f"echo >{path}/chromium; /bin/chmod 755 {path}/chromium"
    command("apt-get", f'echo "$DEBIAN_FRONTEND $@" >>{path}/calls; {installs}')

    assert executable() == str(path / "chromium")

    assert (path / "calls").read_text().splitlines() == [
        "noninteractive --quiet update",
        "noninteractive --quiet install --yes --no-install-recommends chromium-headless-shell",
    ]
    assert "installing" in capfd.readouterr().out


@pytest.mark.services
def test_the_error_names_a_package_that_cannot_be_installed(command: Callable[..., Path]) -> None:
    command("apt-get", 'if [ "$2" = install ]; then echo reading; echo "E: no such package"; exit 100; fi')
    with pytest.raises(NoBrowserError, match=r"apt-get install failed \(E: no such package\): install Chromium or Chr"):
        executable()


@pytest.mark.services
def test_the_error_names_a_package_without_a_browser(command: Callable[..., Path]) -> None:
    command("apt-get")
    with pytest.raises(NoBrowserError, match=r"contains no browser: install Chromium or Chrome .*google-chrome"):
        executable()


def test_without_root_the_error_names_a_browser(command: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    command("apt-get", "exit 1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoBrowserError, match=r"^no browser is installed: install Chromium or Chrome"):
        executable()


@pytest.mark.usefixtures("path")
def test_without_apt_the_error_contains_what_to_install() -> None:
    with pytest.raises(NoBrowserError, match=r"^no browser is installed: install Chromium or Chrome"):
        executable()
